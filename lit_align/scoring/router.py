"""The load-balancing loss of a mixture of experts in a flat row, by the model's own function."""

import sys
from collections import Counter
from typing import Any

import torch
from torch import Tensor

from lit_align.batches import Forest


def balances(inner: Any) -> bool:
    """Whether a model of transformers has a router whose loss can be taken from its trunk."""
    parts = ("num_experts", "num_experts_per_tok")
    return _function(inner) is not None and all(hasattr(inner, part) for part in parts)


def balance_loss(inner: Any, batch: Forest, router_logits: tuple[Tensor, ...]) -> Tensor:
    """Scalar load-balancing loss, as over rows that each hold a prompt and a completion.

    Args:
        inner: the model of transformers.
        batch: the forest that was laid out.
        router_logits: of each layer, ``[T, experts]``.
    """
    branches = Counter(batch.parents)
    # A prompt that is processed once counts as often as there are completions behind it.
    counts: list[int] = []
    lengths: list[int] = []
    children: dict[int, list[int]] = {}
    for own, parent in zip(batch.completion_lengths, batch.parents, strict=True):
        children.setdefault(parent, []).append(own)
    for prompt, length in enumerate(batch.prompt_lengths):
        own_lengths = children.get(prompt, [])
        counts += [branches[prompt], *([1] * len(own_lengths))]
        lengths += [length, *own_lengths]
    mask = torch.repeat_interleave(torch.tensor(counts), torch.tensor(lengths)).to(batch.device)
    balance: Any = _function(inner)
    loss: Tensor = balance(router_logits, inner.num_experts, inner.num_experts_per_tok, mask[None])
    return loss


def _function(inner: Any) -> Any:
    return getattr(sys.modules[type(inner).__module__], "load_balancing_loss_func", None)
