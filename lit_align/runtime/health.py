"""Is everything a finite number? Asked of many tensors at once, with one number that waits on the device."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor


def largest(tensors: Iterable[Tensor]) -> Tensor:
    """The largest magnitude in all tensors, NaN where there is one: a scalar on their device.

    The largest rather than the Euclidean norm, which overflows for finite numbers. Of a sharded tensor
    only the part of this process is looked at.

    >>> largest([torch.tensor([1.0, -3.0]), torch.tensor([[2.0]])]).item()
    3.0
    >>> torch.isnan(largest([torch.tensor([1.0, float("nan")])])).item()
    True
    """
    local = [t.to_local() if isinstance(t, DTensor) else t for t in tensors]
    local = [t.detach() for t in local if t.numel()]
    if not local:
        return torch.zeros(())
    device = local[0].device
    norms = torch._foreach_norm(local, float("inf"))
    return torch.stack([n.float().to(device) for n in norms]).max()


def not_finite(named: Iterable[tuple[str, Tensor]], limit: int = 5) -> list[str]:
    """Names of tensors that hold a NaN or an infinity, at most ``limit``; one wait per tensor."""
    found = []
    for name, tensor in named:
        if not bool(torch.isfinite(largest([tensor]))):
            found.append(name)
            if len(found) == limit:
                break
    return found


def gradients(parameters: Sequence[Tensor]) -> list[Tensor]:
    """The gradients that there are."""
    return [p.grad for p in parameters if p.grad is not None]
