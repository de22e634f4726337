"""State of rollouts in a checkpoint: that of every process, in the one file that is written."""

from collections.abc import Sequence
from typing import Any

from torch import distributed


def gathered(state: dict[str, Any]) -> list[dict[str, Any]]:
    """The states of all processes, in the order of their ranks; every process has to call this."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return [state]
    found: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(found, state)
    return found


def place() -> tuple[int, int]:
    """Rank of this process, and how many there are."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def dealt(items: Sequence[Sequence[Any]], rank: int, world_size: int) -> list[Any]:
    """What the processes of a checkpoint held, dealt out to those that go on.

    Args:
        items: a list per process of the checkpoint.
        rank: of this process.
        world_size: how many there are now; with as many as before each keeps its own.
    """
    if len(items) == world_size:
        return list(items[rank])
    return [item for own in items for item in own][rank::world_size]
