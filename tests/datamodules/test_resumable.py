import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, WeightedRandomSampler

from lit_align.datamodules.resumable import resumable
from lit_align.datamodules.sampling import BatchOrder


class Noisy(Dataset):
    def __len__(self):
        return 11

    def __getitem__(self, i):
        return torch.tensor([i, torch.rand(()).item(), random.random(), np.random.rand()])


def epoch(loader, number: int, rows: int = 0) -> list[list[float]]:
    loader.sampler.set_epoch(number)
    loader.sampler.start_at(number, rows)
    return [row for batch in loader for row in batch.tolist()]


def plain(**options):
    return DataLoader(Noisy(), **({"batch_size": 2, "shuffle": True} | options))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"shuffle": False},
        {"drop_last": True},
        {"shuffle": False, "sampler": WeightedRandomSampler([1.0] * 10 + [5.0], 9)},
        {"generator": torch.Generator()},
    ],
    ids=["shuffled", "in order", "drop_last", "weighted", "own generator"],
)
def test_any_epoch_from_any_row(options):
    loader = resumable(plain(**options), seed=3)
    whole = epoch(loader, 2)
    for batches in range(len(loader)):
        loader.sampler.start_at(2, 0)
        rows = loader.sampler.position(batches)
        # The rows, and what was drawn while they were read.
        assert epoch(resumable(plain(**options), seed=3), 2, rows) == whole[rows:]


def test_epochs_and_seeds_differ():
    loader = resumable(plain(), seed=3)
    orders = [[row[0] for row in epoch(loader, e)] for e in (0, 1)]
    orders.append([row[0] for row in epoch(resumable(plain(), seed=4), 0)])
    assert all(sorted(order) == list(range(11)) for order in orders)
    assert orders[0] != orders[1] != orders[2] != orders[0]


def test_workers_draw_the_same():
    assert epoch(resumable(plain(num_workers=2), seed=3), 1) == epoch(resumable(plain(), seed=3), 1)


def test_ranks_share_the_batches():
    whole = resumable(plain(), seed=3).sampler.batches()
    shares = [list(resumable(plain(), 3, num_replicas=2, rank=r).sampler) for r in (0, 1)]
    assert [batch for pair in zip(*shares, strict=True) for _, batch in pair] == whole
    assert isinstance(resumable(plain()).sampler, BatchOrder)


def test_reading_the_order_leaves_the_generators_alone():
    torch.manual_seed(1)
    random.seed(1)
    expected = torch.rand(()).item(), random.random()
    torch.manual_seed(1)
    random.seed(1)
    resumable(plain(), seed=3).sampler.batches()
    assert (torch.rand(()).item(), random.random()) == expected


def test_without_automatic_batches():
    loader = resumable(DataLoader(Noisy(), batch_size=None, shuffle=True), seed=3)
    loader.sampler.set_epoch(1)
    rows = [row.tolist() for row in loader]
    loader.sampler.start_at(1, 4)
    assert [row.tolist() for row in loader] == rows[4:]


class Stream(IterableDataset):
    def __iter__(self):
        yield torch.zeros(1)


class Own(DataLoader):
    pass


def test_what_cannot_be_resumed_is_refused():
    with pytest.raises(ValueError, match="reads a stream"):
        resumable(DataLoader(Stream()))
    with pytest.raises(ValueError, match="Own may iterate in a way of its own"):
        resumable(Own(Noisy()))
    ours = resumable(plain())
    assert resumable(ours) is ours
