"""Is everything a finite number? Asked of many tensors at once, with one number that waits on the device."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from lit_align.runtime.gradients import numbers
from lit_align.runtime.zero_state import is_partitioned, own_part


def total_norm(tensors: Iterable[Tensor]) -> Tensor:
    """The Euclidean norm of all tensors together, a scalar on their device: not finite if any number is not.

    It may also overflow, of finite numbers above 1e19 in float32: ask :func:`all_finite` then. It is
    several times cheaper, because it is vectorised. Of a sharded tensor only the part of this process
    is looked at.

    >>> total_norm([torch.tensor([3.0]), torch.tensor([[4.0]])]).item()
    5.0
    """
    local = _local(tensors)
    if not local:
        return torch.zeros(())
    norms = torch._foreach_norm(local)
    return torch.stack([n.float().to(norms[0].device) for n in norms]).norm()


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether every number is finite; waits for the device once per tensor.

    >>> all_finite([torch.tensor([1e38, -1e38])]), all_finite([torch.tensor([1.0, float("nan")])])
    (True, False)
    """
    return all(bool(t.isfinite().all()) for t in _local(tensors))


def not_finite(named: Iterable[tuple[str, Tensor]], limit: int = 5) -> list[str]:
    """Names of tensors that hold a NaN or an infinity, at most ``limit``; one wait per tensor."""
    found = []
    for name, tensor in named:
        if not all_finite([tensor]):
            found.append(name)
            if len(found) == limit:
                break
    return found


def gradients(parameters: Sequence[Tensor]) -> list[Tensor]:
    """The gradients that there are."""
    return [p.grad for p in parameters if p.grad is not None]


def _local(tensors: Iterable[Tensor]) -> list[Tensor]:
    return [t.detach() for t in map(_own, tensors) if t.numel()]


def _own(tensor: Any) -> Tensor:
    if is_partitioned(tensor):
        return own_part(tensor)
    return tensor.to_local() if isinstance(tensor, DTensor) else numbers(tensor)
