"""What all processes have to agree on before they go on: a value, or that one of them has failed."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

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


@contextmanager
def together(what: str) -> Iterator[None]:
    """Run a block that may fail on some processes only: where it fails on one, all raise. Collective.

    Without it the others would wait in their next collective for one that does not come. The block itself
    must hold no collective that follows what may fail.

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
