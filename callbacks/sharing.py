"""Work that callbacks do on rows of their own, shared by the processes."""

from typing import Any, TypeVar

from lit_align.runtime.data_place import data_place

T = TypeVar("T")


def my_chunks(count: int, size: int, rank: int, world: int) -> list[tuple[range, bool]]:
    """The chunks of ``count`` rows that one process works on.

    The cut does not depend on the number of processes, so that neither do the results. All processes get
    equally many chunks, because sharded weights need equally many forward passes everywhere.

    Args:
        count: rows.
        size: rows per chunk.
        rank: of this process, among those that work on different rows.
        world: how many do.

    Returns:
        ``(rows, counts)``: ``counts`` is false for a chunk that another process works on too, whose results
        are thrown away.

    >>> my_chunks(5, 2, 0, 2), my_chunks(5, 2, 1, 2)
    ([(range(0, 2), True), (range(4, 5), True)], [(range(2, 4), True), (range(4, 5), False)])
    """
    chunks = [range(start, min(start + size, count)) for start in range(0, count, size)]
    rounds = -(-len(chunks) // world)
    places = [turn * world + rank for turn in range(rounds)]
    return [(chunks[min(place, len(chunks) - 1)], place < len(chunks)) for place in places]


def gather(trainer: Any, mine: list[T]) -> list[T]:
    """The items of all processes, on all of them, in the order of the ranks. Collective.

    Of processes that work on the same rows (tensor parallelism), those of the first.
    """
    parts = from_each(trainer, mine)
    return [item for part in parts[:: data_place(trainer).copies] for item in part]


def from_each(trainer: Any, mine: T) -> list[T]:
    """What every process has, on all of them, in the order of the ranks. Collective."""
    if trainer.world_size == 1:
        return [mine]
    import torch.distributed

    parts: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(parts, mine)
    return parts
