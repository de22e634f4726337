"""A plain DataLoader of anybody's, made to begin anywhere.

Its order becomes a function of (seed, epoch), and so does what its dataset draws at random; nothing
else about it changes.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, SequentialSampler

from lit_align.datamodules.sampling import BatchOrder
from lit_align.runtime.seeds import derive, isolated, reseed

_KEPT = (
    "num_workers",
    "pin_memory",
    "timeout",
    "worker_init_fn",
    "multiprocessing_context",
    "prefetch_factor",
    "persistent_workers",
)


class ReplayedOrder(BatchOrder):
    """The batches that a loader's own sampler gives when its randomness is derived from (seed, epoch).

    Args:
        loader: whose sampler to ask.
        seed: of the order.
        num_replicas: number of ranks that share the batches.
        rank: number of this one.
    """

    def __init__(self, loader: DataLoader[Any], seed: int, num_replicas: int = 1, rank: int = 0) -> None:
        self.batched = loader.batch_sampler is not None
        self.source = loader.batch_sampler if self.batched else loader.sampler
        rows = [1] * len(loader.dataset)  # type: ignore[arg-type]
        shuffle = not isinstance(loader.sampler, SequentialSampler)
        super().__init__(rows, seed=seed, num_replicas=num_replicas, rank=rank, shuffle=shuffle)

    def __iter__(self) -> Iterator[Any]:
        # With the epoch, which workers that live on would not know otherwise.
        return iter([(self.epoch, batch) for batch in super().__iter__()])

    def _plan(self) -> list[list[int]]:
        source: Any = self.source
        seed = derive(self.seed, "order", self.epoch)
        sampler = getattr(source, "sampler", source)
        with isolated(seed):
            if isinstance(sampler, RandomSampler) and sampler.generator is not None:
                sampler.generator.manual_seed(seed)
            if callable(set_epoch := getattr(sampler, "set_epoch", None)):
                set_epoch(self.epoch)
            return [list(one) if self.batched else [one] for one in source]


class SeededRows(Dataset[Any]):
    """A dataset asked for the rows of a batch, with all randomness derived from which they are.

    Args:
        dataset: the rows.
        seed: of the run.
        batched: whether several rows make a batch.
    """

    def __init__(self, dataset: Any, seed: int, batched: bool) -> None:
        self.dataset = dataset
        self.seed = seed
        self.batched = batched

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, place: tuple[int, list[int]]) -> Any:
        epoch, rows = place
        # In the training process this touches the global generators; they are seeded again before the step.
        reseed(derive(self.seed, "rows", epoch, rows[0]))
        if not self.batched:
            return self.dataset[rows[0]]
        if callable(many := getattr(self.dataset, "__getitems__", None)):
            return many(rows)
        return [self.dataset[i] for i in rows]


def resumable(
    loader: DataLoader[Any], seed: int = 0, num_replicas: int = 1, rank: int = 0
) -> DataLoader[Any]:
    """The same loader, able to go on in the middle of an epoch.

    ``resumable(loader).sampler`` is a `BatchOrder`: it takes `set_epoch` and `start_at`, and tells its
    `position`. The loader's dataset, batches, collate function and workers are kept; its dataset is found
    as ``loader.dataset.dataset``.

    Args:
        loader: over a map-style dataset. One that has such an order already is returned as it is.
        seed: of order and of what the dataset draws.
        num_replicas: number of ranks that share the rows; 1 where each has its own.
        rank: number of this one.

    Raises:
        ValueError: it cannot be made resumable: it reads a stream, or its class has ways of its own.
    """
    if isinstance(loader.sampler, BatchOrder):
        return loader
    if isinstance(loader.dataset, IterableDataset):
        raise ValueError("it reads a stream, which can only be read from its start")
    if type(loader) is not DataLoader:
        raise ValueError(
            f"{type(loader).__name__} may iterate in a way of its own; a plain DataLoader is needed"
        )
    order = ReplayedOrder(loader, seed, num_replicas, rank)
    return DataLoader(
        SeededRows(loader.dataset, seed, order.batched),
        sampler=order,
        batch_size=None,
        collate_fn=loader.collate_fn,
        # One of its own: each pass over the loader would otherwise draw from the global generator.
        generator=torch.Generator().manual_seed(seed),
        **{name: getattr(loader, name) for name in _KEPT},
    )
