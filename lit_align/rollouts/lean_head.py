"""Logits of a few rows, without the calls around them."""

from typing import Any

from torch import Tensor

from lit_align.rollouts.lean_parts import product, turned_copy
from lit_align.scoring.head import plain_head


class LeanHead:
    """The output head of a model where it is one matrix.

    Args:
        model: of transformers, whose head :func:`lean_head` takes.
    """

    def __init__(self, model: Any) -> None:
        head = plain_head(model)
        assert head is not None
        self.layer, self.softcap, self.scale = model.get_output_embeddings(), head.softcap, head.scale
        self.product = product(self.layer)

    def copy_size(self) -> int:
        """Bytes that :meth:`copy` takes."""
        return int(self.layer.weight.numel() * self.layer.weight.element_size())

    def copy(self) -> None:
        """Go on with a copy of the matrix, in which products of a few rows take less time."""
        self.product = turned_copy([self.layer]) or self.product

    def __call__(self, states: Tensor) -> Tensor:
        """``[R, V]`` logits of what comes after each of the ``[R, D]`` states."""
        logits = self.product(states)
        if self.softcap is not None:
            logits = self.softcap * (logits / self.softcap).tanh_()
        return logits if self.scale == 1.0 else logits * self.scale


def lean_head(model: Any) -> LeanHead | None:
    """The head of a model, or ``None`` where its own module has to compute it.

    Args:
        model: of transformers, its weights whole.
    """
    layer = model.get_output_embeddings()
    if plain_head(model) is None or layer._forward_hooks or layer._forward_pre_hooks:
        return None
    return LeanHead(model)
