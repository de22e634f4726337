"""Which rows a process reads: not every process has others than its neighbour."""

from typing import Any, NamedTuple

from torch import Tensor

from lit_align.runtime.agreement import gathered


class DataPlace(NamedTuple):
    """The place of a process among those that read different rows.

    Attributes:
        rank: number of its share of the rows.
        size: how many shares there are.
        copies: processes that read each of them, more than one under tensor parallelism.
        is_first: whether this is the first of those; what all of them have, it alone reports.
    """

    rank: int
    size: int
    copies: int
    is_first: bool


def data_place(trainer: Any) -> DataPlace:
    """The place of this process, as the strategy tells it to samplers.

    Args:
        trainer: of Lightning.
    """
    told = getattr(trainer, "distributed_sampler_kwargs", None) or {"num_replicas": 1, "rank": 0}
    size = int(told["num_replicas"])
    copies = max(1, trainer.world_size // size)
    # Processes that read the same rows are neighbours: the last dimension of Lightning's mesh.
    return DataPlace(int(told["rank"]), size, copies, trainer.global_rank % copies == 0)


def values_of_all(trainer: Any, values: Tensor) -> Tensor:
    """The values ``[n]`` of the rows of all processes, each row's once, in ascending order. Collective.

    Args:
        trainer: of Lightning.
        values: of the rows that this process reads; ``n`` may differ.
    """
    # Rows that several processes read come as often; sorted, their values stand side by side.
    return gathered(values).sort().values[:: data_place(trainer).copies]
