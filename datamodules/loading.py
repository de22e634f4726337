"""Splits of tokenised rows, and the loaders over them."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch.utils.data import DataLoader, Dataset

from lit_align.datamodules.build import Pipeline, build_table
from lit_align.datamodules.cache import TokenCache
from lit_align.datamodules.options import BatchOptions, Source, SourceOptions
from lit_align.datamodules.sampling import BatchOrder
from lit_align.datamodules.sources import open_sources
from lit_align.datamodules.splits import hold_out
from lit_align.datamodules.streaming import RowStream, StreamLoader
from lit_align.datamodules.table import TokenTable
from lit_align.datamodules.tokenize import Row


@dataclass(frozen=True)
class Split:
    """The rows of one split.

    Attributes:
        table: all rows.
        counts: what became of the rows that were read.
        sizes: rows of each source.
        weights: share of each source in an epoch, or ``None`` where all rows count alike.
    """

    table: TokenTable
    counts: Counter[str]
    sizes: tuple[int, ...]
    weights: tuple[float, ...] | None


def load_split(
    source: Source,
    options: SourceOptions,
    make_pipeline: Callable[[], Pipeline],
    cache: TokenCache,
    part: Literal["all", "kept", "held_out"] = "all",
    seed: int = 0,
) -> Split:
    """Read, tokenise and join the sources of a split.

    Args:
        source: what the user gave.
        options: with the limit, and the fraction to hold out.
        make_pipeline: a new pipeline for each source, whose columns may differ.
        cache: for tokens.
        part: with ``val_fraction``, which side of it.
        seed: of the choice of the rows held out.

    Returns:
        The rows. Where there are several sources, rows are numbered over all of them.
    """
    tables, counts, weights, start = [], Counter[str](), [], 0
    for one, weight in open_sources(source, limit=options.limit):
        table, of_source = build_table(one, make_pipeline(), cache)
        table = replace(table, rows=table.rows + start)
        start += of_source["rows_read"]
        if part != "all":
            kept, held_out = hold_out(table, options.val_fraction, seed)
            table = table.select(kept if part == "kept" else held_out)
            mine = {"rows_kept": len(table), "tokens": int(table.lengths.sum())}
            of_source = Counter({**of_source, **mine})
        tables.append(table)
        weights.append(weight)
        counts.update(of_source)
    mixed = isinstance(source, Mapping) and part != "held_out"
    return Split(
        TokenTable.concatenate(tables),
        counts,
        tuple(len(table) for table in tables),
        tuple(weights) if mixed else None,
    )


class RowBatches(Dataset[list[Row]]):
    """Tokenised rows, asked for a batch at a time.

    Args:
        table: the rows.
        order: which rows make which batch.
    """

    def __init__(self, table: TokenTable, order: BatchOrder) -> None:
        self.table = table
        self.order = order

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int | list[int]) -> list[Row]:
        if isinstance(index, int):
            # A sequential sampler, which Trainer(overfit_batches=...) brings: the batches of the first epoch.
            index = self.order.batches()[index // self.order.repeat]
        return [self.table[i] for i in index]


def row_loader(
    split: Split,
    options: BatchOptions,
    collate: Callable[[list[Row]], Any],
    rank: int,
    num_replicas: int,
    training: bool,
    repeat: int = 1,
) -> DataLoader[Any]:
    """A loader over tokenised rows.

    Args:
        split: the rows.
        options: how they become batches.
        collate: rows to a batch.
        rank: of this process.
        num_replicas: number of processes.
        training: shuffled, in the shares of a mixture; otherwise every row once, in order.
        repeat: how often each batch is given, the times one after another.
    """
    order = BatchOrder(
        split.table.lengths,
        options.batch_size if training else options.eval_batch_size or options.batch_size,
        batch_tokens=options.batch_tokens,
        length_bucketing=options.length_bucketing,
        shuffle=training and options.shuffle,
        evaluation=not training,
        drop_last=training and options.drop_last,
        seed=options.seed,
        num_replicas=num_replicas,
        rank=rank,
        shares=(split.sizes, split.weights) if training and split.weights else None,
        repeat=repeat,
    )
    return DataLoader(
        RowBatches(split.table, order),
        sampler=order,
        batch_size=None,
        collate_fn=collate,
        persistent_workers=options.num_workers > 0,
        **_worker_options(options),
    )


def stream_loader(
    source: Source,
    sources: SourceOptions,
    options: BatchOptions,
    pipeline: Pipeline,
    collate: Callable[[list[Row]], Any],
    rank: int,
    num_replicas: int,
    training: bool,
    repeat: int = 1,
) -> DataLoader[Any]:
    """A loader that tokenises as it reads; see `lit_align.datamodules.streaming`."""
    opened = open_sources(source, streaming=True, limit=sources.limit)
    stream = RowStream(
        opened,
        mixed=isinstance(source, Mapping) and training,
        pipeline=pipeline,
        options=options if training else replace(options, drop_last=False),
        shuffle_buffer=sources.shuffle_buffer if training and options.shuffle else 1,
        rank=rank,
        num_replicas=num_replicas,
    )
    return StreamLoader(stream, collate_fn=collate, repeat=repeat, **_worker_options(options))


def _worker_options(options: BatchOptions) -> dict[str, Any]:
    return {
        "num_workers": options.num_workers,
        "pin_memory": options.pin_memory,
        # Without one of its own, each pass over the loader would draw from the global generator.
        "generator": torch.Generator().manual_seed(options.seed),
    }
