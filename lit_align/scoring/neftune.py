"""NEFTune: uniform noise on the embeddings while training (Jain et al. 2023, arXiv 2310.05914)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


@contextmanager
def noisy_embeddings(model: Any, lengths: Tensor, alpha: float | None) -> Iterator[None]:
    """Add noise to what the input embeddings return, inside the block.

    ``x + (alpha / sqrt(L d)) * u`` with ``u`` uniform on [-1, 1] (Algorithm 1), where ``L`` is the length of
    the document itself, so that its noise does not depend on what it was padded to or put beside.

    Args:
        model: a language model with ``get_input_embeddings``.
        lengths: length of the document that a token belongs to, in a shape that spreads over the batch:
            ``[rows, 1]`` or ``[1, T]``.
        alpha: strength, 5 to 15 in the paper; ``None`` adds nothing.
    """
    if alpha is None:
        yield
        return

    def add_noise(_: Any, __: Any, embedded: Tensor) -> Tensor:
        size = lengths.to(embedded.device, torch.float32) * embedded.shape[-1]
        scale = (alpha / size.clamp_min(1.0).sqrt()).to(embedded.dtype)
        return embedded + torch.empty_like(embedded).uniform_(-1, 1) * scale[..., None]

    handle = model.get_input_embeddings().register_forward_hook(add_noise)
    try:
        yield
    finally:
        handle.remove()
