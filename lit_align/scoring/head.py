"""The output head and the loss in one pass, without the logits of a whole batch.

A chunk of hidden states becomes logits, log-probs, the loss, the loss's derivative by each log-prob, and
from that the gradients of hidden states and head, while the chunk is in cache: three matrix products, and
no ``[T, V]`` tensor. Any loss fits, because autograd itself differentiates it by the log-probs.

What is done with a chunk is in :mod:`lit_align.scoring.head_work`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lit_align.outputs import LossOutput, Statistic, merge_outputs
from lit_align.scoring.blocks import Block
from lit_align.scoring.head_gradient import HeadGradient, scaled
from lit_align.scoring.head_work import Head, HeadWork, Loss, chunk_rows, head_scores, plain_head

__all__ = ["FusedLoss", "Head", "HeadWork", "Loss", "chunk_rows", "head_loss", "head_scores", "plain_head"]


def head_loss(
    hidden: Tensor,
    head: Head,
    targets: Tensor,
    parts: Sequence[Block],
    loss: Loss,
    statistics: frozenset[Statistic] = frozenset(),
    values: Tensor | None = None,
    gradient: HeadGradient | None = None,
) -> LossOutput:
    """A loss of log-probs, with the gradients of hidden states and head made on the way.

    Args:
        hidden: ``[M, D]`` states that predict the scored tokens.
        head: the output head.
        targets: ``[M]`` the scored tokens.
        parts: the forest in blocks, from :func:`lit_align.scoring.blocks.blocks`.
        loss: a sum over the prompts of a block.
        statistics: what the loss wants beside the log-probs.
        values: ``[M]`` of a critic at the scored tokens, which the loss finds in ``Scores.values`` and
            through which its gradient goes on.
        gradient: where the gradient of the head's weight is collected over several calls.
    """
    outputs: list[LossOutput] = []

    def run(
        states: Tensor, weight: Tensor, bias: Tensor | None, values: Tensor | None, needs: Sequence[bool]
    ) -> HeadWork:
        owned = head._replace(weight=weight, bias=bias)
        work = HeadWork(states, owned, targets, statistics, needs, values, gradient)
        outputs.extend(work.block(part, loss) for part in parts)
        return work

    total = FusedLoss.apply(hidden, head.weight, head.bias, values, run, torch.is_grad_enabled())
    return merge_outputs(outputs)._replace(total=total)


class FusedLoss(torch.autograd.Function):
    """A loss whose gradients by states and head were made with it; ``run`` makes both."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        values: Tensor | None,
        run: Callable[..., "HeadWork"],
        train: bool,
    ) -> Tensor:
        """The total of ``run``'s work, whose buffers are kept."""
        work = run(hidden, weight, bias, values, [train and needed for needed in ctx.needs_input_grad[:4]])
        ctx.save_for_backward(work.d_hidden, work.d_weight, work.d_bias, work.d_values)
        ctx.dtypes = [None if t is None else t.dtype for t in (hidden, weight, bias, values)]
        ctx.gradient, ctx.spent = work.gradient, False
        return work.total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        """The buffers, times the derivative of the total."""
        if ctx.spent:
            raise RuntimeError("a fused loss can be differentiated once: its gradients are given away")
        ctx.spent = True
        found, scale = ctx.saved_tensors, ctx.gradient.relative(grad)
        # In place: the buffers are nobody else's, and one of them may be the size of the vocabulary.
        grads = [
            None if g is None or i == 1 else scaled(g, scale).to(dtype)
            for i, (g, dtype) in enumerate(zip(found, ctx.dtypes, strict=True))
        ]
        if found[1] is not None:
            grads[1] = ctx.gradient.hand_over(found[1], grad, ctx.dtypes[1])
        return (*grads, None, None)
