"""One buffer for the gradient of a head's weight, which may be the largest tensor of a step.

Autograd alone makes a buffer of the size of the vocabulary for every micro-batch, one more for a tied
embedding, and adds them up. Here all of them write into one, which autograd receives once.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lit_align.scoring.loss_scale import loss_scale


class HeadGradient:
    """The gradient of a head's weight ``[V, D]`` over the micro-batches of a step.

    Every micro-batch must be scaled alike, as the parts of one sum are.

    Attributes:
        buffer: the sum so far; ``None`` before the first micro-batch.
        last: whether the next backward pass hands the sum over to autograd, or leaves it here.
        shared: whether an embedding comes behind, that has something to add.
        loss_scale: what the buffers hold is the gradient of this multiple of the loss.
    """

    def __init__(self) -> None:
        self.buffer: Tensor | None = None
        self.last = True
        self.shared = False
        self.loss_scale = loss_scale()
        self._scale: Tensor | None = None

    def hand_over(self, found: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor | None:
        """What the backward pass of the head returns for its weight.

        Args:
            found: the buffer, in the units of the loss times :attr:`loss_scale`.
            scale: derivative of what is minimised by the loss.
            dtype: of the weight.
        """
        scale = self.relative(scale)
        if not self.last:
            self.buffer, self._scale = found, scale
            return None
        result = scaled(found, scale).to(dtype)
        # Whoever still holds the tensor when it becomes ``.grad`` makes autograd copy it.
        self.buffer, self._scale = result if self.shared else None, None
        return result

    def relative(self, scale: Tensor) -> Tensor:
        """What the buffers are still to be multiplied by for a derivative of ``scale`` by the loss."""
        return scale if self.loss_scale == 1.0 else scale / self.loss_scale

    def add_rows(self, ids: Tensor, grads: Tensor) -> bool:
        """Add the gradient of an embedding that shares the weight; ``False`` where no head came before."""
        if self.buffer is None:
            return False
        # What stays here is multiplied by the scale later.
        grads = grads if self._scale is None else grads / self._scale
        self.buffer.index_add_(0, ids, grads.to(self.buffer.dtype))
        if self.last:
            self.buffer = None
        return True

    def join(self, total: Tensor, weight: Tensor) -> Tensor:
        """A loss that was made without the buffer, and hands over what the micro-batches before left in it.

        Args:
            total: of a micro-batch that autograd alone differentiates, as a padded one.
            weight: of the head.
        """
        if not self.last or self.buffer is None:
            return total
        return _Joined.apply(total, weight, self)


def scaled(values: Tensor, scale: Tensor) -> Tensor:
    """``values *= scale``, without a pass over them where that changes nothing."""
    # Elsewhere than on the host, to look at the number costs more than the pass.
    if scale.is_cpu and scale.item() == 1.0:
        return values
    if values.dtype == torch.float16:
        # A scale above 65504 is infinite there.
        return values.copy_(values.float().mul_(scale))
    return values.mul_(scale.to(values.dtype))


class _Joined(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, total: Tensor, weight: Tensor, gradient: HeadGradient) -> Tensor:
        ctx.gradient, ctx.dtype = gradient, weight.dtype
        return total.view_as(total)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        # An embedding of this micro-batch has a gradient of its own.
        ctx.gradient.shared = False
        return grad, ctx.gradient.hand_over(ctx.gradient.buffer, grad, ctx.dtype), None


class TiedEmbedding(torch.autograd.Function):
    """Rows of a weight that is also the head's: its gradient joins the head's."""

    @staticmethod
    def forward(ctx: Any, ids: Tensor, weight: Tensor, padding: int | None, gradient: HeadGradient) -> Tensor:
        """``ids`` is ``[..., T]``, ``weight`` ``[V, D]``."""
        ctx.save_for_backward(ids)
        ctx.shape, ctx.padding, ctx.gradient = weight.shape, padding, gradient
        return weight[ids]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        """Nothing where the head's buffer took it, and a gradient of its own otherwise."""
        (ids,) = ctx.saved_tensors
        rows, grads = ids.flatten(), grad.flatten(0, -2)
        if ctx.padding is not None:
            grads = grads.masked_fill((rows == ctx.padding)[:, None], 0.0)
        if ctx.gradient.add_rows(rows, grads):
            return None, None, None, None
        return None, grads.new_zeros(ctx.shape).index_add_(0, rows, grads), None, None


class SharedEmbedding(nn.Embedding):
    """An embedding that knows, inside :func:`embedding_joins`, where its gradient is collected."""

    gradient: HeadGradient | None = None

    def forward(self, input: Tensor) -> Tensor:
        """As :class:`torch.nn.Embedding`."""
        if self.gradient is None or not (torch.is_grad_enabled() and self.weight.requires_grad):
            return super().forward(input)
        return TiedEmbedding.apply(input, self.weight, self.padding_idx, self.gradient)


@contextmanager
def embedding_joins(model: Any, weight: Tensor, gradient: HeadGradient) -> Iterator[None]:
    """Inside the block, an embedding that shares the head's weight collects its gradient with the head's."""
    embedding = model.get_input_embeddings()
    if getattr(embedding, "weight", None) is not weight or not _is_plain(embedding):
        yield
        return
    embedding.__class__, embedding.gradient = SharedEmbedding, gradient
    gradient.shared = True
    try:
        yield
    finally:
        del embedding.gradient
        embedding.__class__ = nn.Embedding


def _is_plain(embedding: Any) -> bool:
    special = embedding.max_norm is not None or embedding.scale_grad_by_freq or embedding.sparse
    return type(embedding) is nn.Embedding and not special
