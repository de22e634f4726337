"""A gated MLP as one autograd function, which keeps two tensors of its inner width instead of three.

Autograd keeps the gate, the other half and their product. The backward pass makes ``silu(gate)`` anyway, from
which the product is one multiplication away; and the gradients of both halves meet in one sum of products.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed.tensor import DTensor


class GatedMLP(torch.autograd.Function):
    """``(silu(x Gᵀ) * x Uᵀ) Dᵀ`` (arXiv 2002.05202, eq. 6)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
        """``x`` is ``[..., D]``, ``gate`` and ``up`` ``[F, D]``, ``down`` ``[D, F]``."""
        flat = x.flatten(0, -2)
        a, b = flat @ gate.T, flat @ up.T
        ctx.save_for_backward(flat, a, b, gate, up, down)
        ctx.shape = x.shape
        inner = torch.ops.aten.silu(a).mul_(b)
        return (inner @ down.T).view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        """With ``g = grad D``: ``d b = g silu(a)``, ``d a = g b silu'(a)``, ``dx = d a G + d b U``."""
        x, a, b, gate, up, down = ctx.saved_tensors
        needs = ctx.needs_input_grad
        outer = grad.flatten(0, -2)
        d_b = outer @ down
        d_a = d_b * b
        torch.ops.aten.silu_backward.grad_input(d_a, a, grad_input=d_a)
        silu = torch.ops.aten.silu(a)
        d_b.mul_(silu)
        d_down = outer.T @ silu.mul_(b) if needs[3] else None
        d_gate = d_a.T @ x if needs[1] else None
        d_up = d_b.T @ x if needs[2] else None
        d_x = (d_a @ gate).addmm_(d_b, up).view(ctx.shape) if needs[0] else None
        return d_x, d_gate, d_up, d_down


def is_plain(x: Tensor, *layers: Any) -> bool:
    """Whether the layers do to ``x`` nothing but multiply it by their weights, in its own dtype."""
    return not torch.is_autocast_enabled(x.device.type) and all(
        _multiplies(layer, x.dtype) for layer in layers
    )


def _multiplies(layer: Any, dtype: torch.dtype) -> bool:
    if type(layer) is not nn.Linear or layer.bias is not None or "forward" in layer.__dict__:
        return False
    hooked = (
        layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks
    )
    return not hooked and layer.weight.dtype == dtype and not isinstance(layer.weight, DTensor)
