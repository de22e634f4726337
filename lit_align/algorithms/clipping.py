"""Clipping by the norm inside the optimiser's step, which spares a pass over every gradient."""

from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm
from torch.optim import Adam, AdamW, Optimizer

from lit_align.algorithms.row_adamw import RowAdamW
from lit_align.runtime.gradients import numbers

# As in torch.nn.utils.clip_grad_norm_.
_EPSILON = 1e-6


def clip_in_step(
    optimizer: Optimizer, limit: float | None, algorithm: str | None, precision: str | None
) -> bool:
    """Let a fused optimiser divide the gradients by what clipping asks for, as it reads them.

    Args:
        optimizer: about to take its step.
        limit: of the norm of all gradients; nothing is clipped without.
        algorithm: ``norm``, which is also meant by ``None``, or ``value``.
        precision: of the trainer.

    Returns:
        Whether clipping is seen to. ``False`` where the optimiser is another, where weights are spread over
        processes, and in float16, whose scale has the same place.
    """
    if algorithm not in (None, "norm") or not limit or (precision or "").startswith("16"):
        return False
    if type(optimizer) not in (Adam, AdamW, RowAdamW) or not all(
        g.get("fused") for g in optimizer.param_groups
    ):
        return False
    grads = [
        numbers(p.grad) for group in optimizer.param_groups for p in group["params"] if p.grad is not None
    ]
    if not grads or any(isinstance(g, DTensor) for g in grads):
        return False
    norm: Tensor = get_total_norm(grads)
    # The optimiser divides by it.
    target: Any = optimizer
    target.grad_scale = ((norm + _EPSILON) / limit).clamp_min(1.0).float()
    return True


def forget_scale(optimizer: Any) -> None:
    """Take the scale off again after the step."""
    inner = getattr(optimizer, "optimizer", optimizer)
    if isinstance(getattr(inner, "grad_scale", None), torch.Tensor):
        inner.grad_scale = None
