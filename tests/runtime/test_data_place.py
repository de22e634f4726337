from types import SimpleNamespace

import pytest

from lit_align.runtime.data_place import data_place


def trainer(rank: int, world: int, told: dict[str, int] | None) -> SimpleNamespace:
    return SimpleNamespace(global_rank=rank, world_size=world, distributed_sampler_kwargs=told)


def test_one_process_reads_everything():
    assert data_place(trainer(0, 1, None)) == (0, 1, 1, True)


@pytest.mark.parametrize("rank", range(3))
def test_each_process_of_ddp_reads_others(rank):
    assert data_place(trainer(rank, 3, {"num_replicas": 3, "rank": rank})) == (rank, 3, 1, True)


@pytest.mark.parametrize(
    ("rank", "share", "first"), [(0, 0, True), (1, 0, False), (2, 1, True), (3, 1, False)]
)
def test_neighbours_that_share_products_read_the_same(rank, share, first):
    """Four processes, two by two."""
    assert data_place(trainer(rank, 4, {"num_replicas": 2, "rank": share})) == (share, 2, 2, first)
