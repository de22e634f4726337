"""The element-wise parts of a transformer block, each as one autograd function.

Every one computes what the library's own code computes, in the same order of operations (see
:class:`Rotation` for its rounding under autocast), but keeps less for the backward pass
and makes fewer passes over memory: on a CPU they are a third of the time of a small model.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import silu

# Rows are worked on in pieces of this many numbers, so that what one pass writes the next finds in cache.
PIECE = 2**17


class RMSNorm(torch.autograd.Function):
    """``x / sqrt(mean(x²) + eps) * (weight + offset)`` over the last dimension (arXiv 1910.07467, eq. 4)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, offset: float) -> Tensor:
        """``x`` is ``[..., D]`` of float32, ``weight`` ``[D]``. Under autocast the result is in its dtype."""
        factor = (x.pow(2).mean(-1, keepdim=True) + eps).rsqrt_()
        ctx.save_for_backward(x, factor, weight)
        ctx.offset = offset
        normed = (x * factor).mul_(weight + offset if offset else weight)
        # Each product behind it would make the same copy for itself.
        return normed.to(torch.get_autocast_dtype(x.device.type)) if _autocast(x) else normed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        """With ``n = x factor`` and ``g = grad weight``: ``dx = factor (g - n mean(g n))``."""
        x, factor, weight = ctx.saved_tensors
        grad = grad.to(x.dtype)
        scale = weight + ctx.offset if ctx.offset else weight
        normed = x * factor
        product = grad * normed
        d_weight = product.flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        if not ctx.needs_input_grad[0]:
            return None, d_weight, None, None
        along = (product @ scale).unsqueeze(-1)
        d_x = (grad * scale).addcmul_(normed, along, value=-1 / x.shape[-1]).mul_(factor)
        return d_x, d_weight, None, None


class SwiGLU(torch.autograd.Function):
    """``silu(gate) * up`` (arXiv 2002.05202, eq. 6). Keeps its two inputs, and computes ``silu`` again."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        """Both are ``[..., F]``."""
        ctx.save_for_backward(gate, up)
        out = torch.empty_like(gate)
        for g, u, o in _pieces(gate, up, out):
            torch.ops.aten.silu.out(g, out=o).mul_(u)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        """``d up = grad silu(gate)``, ``d gate = grad up silu'(gate)``."""
        gate, up = ctx.saved_tensors
        d_gate, d_up = torch.empty_like(gate), torch.empty_like(up)
        for g, u, outer, to_gate, to_up in _pieces(gate, up, grad.contiguous(), d_gate, d_up):
            torch.ops.aten.silu.out(g, out=to_up).mul_(outer)
            torch.mul(outer, u, out=to_gate)
            torch.ops.aten.silu_backward.grad_input(to_gate, g, grad_input=to_gate)
        return d_gate, d_up


class Rotation(torch.autograd.Function):
    """Rotary position embedding on halves (arXiv 2104.09864, eq. 34, with its pairs ``i``, ``i + d/2``).

    All of it is done in the dtype of ``x``. Under bf16 autocast the tables and both products are therefore
    rounded to bf16, where transformers works in float32 and rounds the result once.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """``x`` is ``[1, T, heads, d]``, ``cos`` and ``sin`` ``[1, T, 1, d / 2]``."""
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        """The gradient turns back."""
        cos, sin = ctx.saved_tensors
        return _rotated(grad, cos, sin, -1), None, None


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """``silu(gate) * up``."""
    if gate.dtype != up.dtype:
        return silu(gate) * up
    return SwiGLU.apply(gate, up)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor, direction: int) -> Tensor:
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    (a, b), (to_a, to_b) = x.chunk(2, -1), out.chunk(2, -1)
    torch.mul(a, cos, out=to_a).addcmul_(b, sin, value=-direction)
    torch.mul(b, cos, out=to_b).addcmul_(a, sin, value=direction)
    return out


def _pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    width = tensors[0].shape[-1]
    rows = max(1, PIECE // max(width, 1))
    if not tensors[0].is_cpu or tensors[0].numel() <= 2 * PIECE:
        return iter([tensors])
    return zip(*(t.view(-1, width).split(rows) for t in tensors), strict=True)


def _autocast(x: Tensor) -> bool:
    return torch.is_autocast_enabled(x.device.type)
