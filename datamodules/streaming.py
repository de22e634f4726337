"""Rows tokenised as they are read, for sources too long to go through first.

Exact resume needs a known number of rows and therefore the other way (``streaming=False``): a stream
that is stopped begins anew. Its order is a function of (seed, epoch, ranks, workers). Ranks take turns
in taking rows, and may end an epoch with a batch more or less than others: with several ranks, train
for ``max_steps`` and less than an epoch.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from random import Random
from typing import Any

from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from lit_align.datamodules.build import Pipeline
from lit_align.datamodules.options import BatchOptions
from lit_align.datamodules.sources import Record, RowSource
from lit_align.datamodules.tokenize import Row

#: Rows per call of the tokenizer; few, so that the first batch comes soon.
_CHUNK = 64
#: Rows after which losses by truncation are judged for the first time.
_JUDGED_AFTER = 1000


class RowStream(IterableDataset[list[Row]]):
    """Batches of rows from sources that are read lazily.

    Args:
        sources: the sources with their weights.
        mixed: draw from the sources in proportion to their weights, instead of one after another.
        pipeline: what becomes of a record.
        options: how rows become batches; ``length_bucketing`` sorts within the shuffle buffer.
        shuffle_buffer: rows among which the next one is drawn; 1 keeps their order.
        rank: of this process.
        num_replicas: number of processes.
    """

    def __init__(
        self,
        sources: Sequence[tuple[RowSource, float]],
        mixed: bool,
        pipeline: Pipeline,
        options: BatchOptions,
        shuffle_buffer: int,
        rank: int = 0,
        num_replicas: int = 1,
    ) -> None:
        self.sources = list(sources)
        self.mixed = mixed
        self.pipeline = pipeline
        self.options = options
        self.shuffle_buffer = shuffle_buffer
        self.rank = rank
        self.num_replicas = num_replicas
        self.epoch = 0

    def __iter__(self) -> Iterator[list[Row]]:
        worker = get_worker_info()
        workers, number = (worker.num_workers, worker.id) if worker else (1, 0)
        shard = self.rank * workers + number
        records = islice(self._records(), shard, None, self.num_replicas * workers)
        rows = self._rows(records)
        if self.shuffle_buffer > 1:
            rows = _shuffled(rows, self.shuffle_buffer, Random(f"{self.options.seed}/{self.epoch}/{shard}"))
        yield from self._batches(rows)

    def _records(self) -> Iterator[Record]:
        """Every rank and worker goes through the same sequence, numbered over all sources."""
        if self.mixed:
            records = _interleaved(self.sources, Random(f"{self.options.seed}/{self.epoch}/mixture"))
        else:
            records = (record for source, _ in self.sources for record in source)
        for row, record in enumerate(records):
            yield record if len(self.sources) == 1 else replace(record, row=row)

    def _rows(self, records: Iterator[Record]) -> Iterator[Row]:
        pipeline = self.pipeline.fresh()
        name = ", ".join(source.name for source, _ in self.sources)
        for row in pipeline.rows(records, _CHUNK):
            if pipeline.counts["rows_read"] >= _JUDGED_AFTER:
                pipeline.check_lost(name)
            yield row
        pipeline.check_lost(name)

    def _batches(self, rows: Iterator[Row]) -> Iterator[list[Row]]:
        batch: list[Row] = []
        tokens = 0
        budget = self.options.batch_tokens
        for row in rows:
            full = tokens + row.num_tokens > budget if budget else len(batch) == self.options.batch_size
            if batch and full:
                yield batch
                batch, tokens = [], 0
            batch.append(row)
            tokens += row.num_tokens
        if batch and not (self.options.drop_last and len(batch) < self.options.batch_size):
            yield batch


class StreamLoader(DataLoader[Any]):
    """A loader that gives each pass over its `RowStream` a number of its own.

    Args:
        stream: the rows.
        collate_fn: rows to a batch.
        repeat: how often each batch is given, the times one after another.
        options: those of a DataLoader.
    """

    def __init__(
        self, stream: RowStream, collate_fn: Callable[[list[Row]], Any], repeat: int = 1, **options: Any
    ) -> None:
        super().__init__(stream, batch_size=None, collate_fn=collate_fn, worker_init_fn=_quiet, **options)
        self.repeat = repeat
        self._passes = 0

    def __iter__(self) -> Any:
        # Workers are started anew for each pass and take the number along.
        self.dataset.epoch = self._passes  # type: ignore[attr-defined]
        self._passes += 1
        batches = super().__iter__()
        # Here and not in the stream, whose batches several workers give in turns.
        return (batch for batch in batches for _ in range(self.repeat)) if self.repeat > 1 else batches


def _quiet(worker: int) -> None:
    # A forked tokenizer must not use the threads of its parent, and warns unless told so.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _shuffled(rows: Iterator[Row], size: int, random: Random) -> Iterator[Row]:
    buffer = list(islice(rows, size))
    for row in rows:
        at = random.randrange(len(buffer))
        yield buffer[at]
        buffer[at] = row
    random.shuffle(buffer)
    yield from buffer


def _interleaved(sources: Sequence[tuple[RowSource, float]], random: Random) -> Iterator[Record]:
    """Records drawn by weight; a source that ends leaves the others to go on."""
    running = [(iter(source), weight) for source, weight in sources]
    while running:
        (at,) = random.choices(range(len(running)), weights=[weight for _, weight in running])
        record = next(running[at][0], None)
        if record is None:
            del running[at]
        else:
            yield record
