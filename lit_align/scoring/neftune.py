"""NEFTune: uniform noise on the embeddings while training (Jain et al. 2023, arXiv 2310.05914)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lit_align.batches import Forest


@contextmanager
def noisy_embeddings(model: nn.Module, batch: Forest, alpha: float | None) -> Iterator[None]:
    """Add noise to what the input embeddings return, inside the block.

    ``x + (alpha / sqrt(L d)) * u`` with ``u`` uniform on [-1, 1] (Algorithm 1), where ``L`` is the length of
    the row itself, so that the noise of a row does not depend on what it was padded to.

    Args:
        model: a language model with ``get_input_embeddings``.
        batch: the forest that is about to be scored, in rows of prompt + completion.
        alpha: strength, 5 to 15 in the paper; ``None`` adds nothing.
    """
    if alpha is None:
        yield
        return
    lengths = [
        batch.prompt_lengths[p] + c for p, c in zip(batch.parents, batch.completion_lengths, strict=True)
    ]

    def add_noise(_: nn.Module, __: Any, embedded: Tensor) -> Tensor:
        size = torch.tensor(lengths, device=embedded.device, dtype=torch.float32) * embedded.shape[-1]
        scale = (alpha / size.clamp_min(1.0).sqrt()).to(embedded.dtype)
        return embedded + torch.empty_like(embedded).uniform_(-1, 1) * scale[:, None, None]

    handle = model.get_input_embeddings().register_forward_hook(add_noise)  # type: ignore[operator]
    try:
        yield
    finally:
        handle.remove()
