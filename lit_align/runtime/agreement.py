"""What all processes have to know before they go on: a value, each other's values, that one has failed."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class FailedElsewhere(RuntimeError):
    """Another process failed, so that this one cannot go on; the message is that process's."""


def several() -> bool:
    """Whether there are other processes."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return distributed and torch.distributed.get_world_size() > 1


def is_zero() -> bool:
    """Whether this is process zero, or the only one."""
    return not several() or torch.distributed.get_rank() == 0


def of_zero(value: T) -> T:
    """The value of process zero, on all of them. Collective.

    Args:
        value: of this process; what the others give is not looked at.
    """
    if not several():
        return value
    told: list[Any] = [value if torch.distributed.get_rank() == 0 else None]
    torch.distributed.broadcast_object_list(told, src=0)
    found: T = told[0]
    return found


def gathered(values: Tensor) -> Tensor:
    """The values ``[n]`` of all processes, one process after another; ``n`` may differ. Collective."""
    if not several():
        return values
    world = torch.distributed.get_world_size()
    count = torch.tensor([len(values)], device=values.device)
    counts = [torch.empty_like(count) for _ in range(world)]
    torch.distributed.all_gather(counts, count)
    lengths = torch.cat(counts).tolist()
    padded = values.new_zeros(max(lengths))
    padded[: len(values)] = values
    parts = [torch.empty_like(padded) for _ in range(world)]
    torch.distributed.all_gather(parts, padded)
    return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])


def agree(number: int, device: torch.device) -> int:
    """The largest of the processes' numbers. Collective."""
    found = torch.tensor(number, device=device)
    torch.distributed.all_reduce(found, op=torch.distributed.ReduceOp.MAX)
    return int(found)


@contextmanager
def together(what: str) -> Iterator[None]:
    """Run a block that may fail on some processes only: where it fails on one, all raise. Collective.

    Without it the others would wait in their next collective for one that does not come. Collectives inside
    of the block are on their own: there the others wait for one that failed before.

    Args:
        what: is being done, for the message.

    Raises:
        FailedElsewhere: on processes where the block did not fail itself.
    """
    if not several():
        yield
        return
    failed: Exception | None = None
    try:
        yield
    except Exception as error:
        failed = error
    said = None if failed is None else f"{type(failed).__name__}: {failed}"
    reasons: list[str | None] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(reasons, said)
    if failed is not None:
        raise failed
    for rank, reason in enumerate(reasons):
        if reason is not None:
            raise FailedElsewhere(f"process {rank} failed while {what}: {reason}")
