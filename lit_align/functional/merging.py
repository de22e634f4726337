"""Ways to put weights together that training has taken apart: linear, spherical, and by task vectors.

Tensors of any one shape; whole models are merged tensor by tensor.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def linear(first: Tensor, second: Tensor, weight: float) -> Tensor:
    """``(1 - weight) first + weight second`` (model soups, Wortsman et al. 2022, arXiv 2203.05482).

    Args:
        first: at ``weight=0``.
        second: at ``weight=1``, of the same shape.
        weight: outside of 0 to 1 it extrapolates.

    Returns:
        In float32, of the same shape.
    """
    return first.float().lerp(second.float(), weight)


def slerp(first: Tensor, second: Tensor, weight: float) -> Tensor:
    """The point between two tensors on the arc around the origin (Shoemake 1985, equation for Slerp).

    ``sin((1 - weight) omega) / sin(omega) first + sin(weight omega) / sin(omega) second``, where ``omega`` is
    the angle between the two as vectors. Where they (nearly) point the same or opposite ways, or one is zero,
    there is no one arc, and the point is the linear one.

    Args:
        first: at ``weight=0``.
        second: at ``weight=1``, of the same shape.
        weight: along the arc.

    Returns:
        In float32, of the same shape.
    """
    a, b = first.double().flatten(), second.double().flatten()
    norms = a.norm() * b.norm()
    cosine = float(a @ b / norms) if norms > 0 else 1.0
    if abs(cosine) > 1 - 1e-9:
        return linear(first, second, weight)
    omega = torch.tensor(cosine, dtype=torch.float64).acos()
    point = ((1 - weight) * omega).sin() * a + (weight * omega).sin() * b
    return (point / omega.sin()).float().view(first.shape)


def task_arithmetic(base: Tensor, tuned: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """``base + sum_i weight_i (tuned_i - base)`` (Ilharco et al. 2023, arXiv 2212.04089, section 2).

    Args:
        base: what all were tuned from.
        tuned: of the same shape as ``base``.
        weights: one for each; a negative one takes a task away.

    Returns:
        In float32, of the same shape.
    """
    start = base.float()
    merged = start.clone()
    for tensor, weight in zip(tuned, weights, strict=True):
        merged += weight * (tensor.float() - start)
    return merged
