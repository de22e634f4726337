"""Which rows make which batch: a function of (seed, epoch) alone.

The order of batches does not depend on the number of ranks: rank ``r`` of ``W`` takes the batches
``r, r + W, r + 2W ...`` of it. Every rank gets as many batches as the others: when they do not
divide, the last few batches are halved until they do. No row is repeated, and none is lost, except
that in training up to ``W - 1`` rows stay out of an epoch when even single rows do not divide (other
ones each epoch); in evaluation these join the last batches.

A batch may be given several times in a row (``repeat``): training on what a policy answers to prompts
takes one step per part of the answers, and every step asks the loader for a batch.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import DistributedSampler

#: Batches' worth of rows that are sorted by length together.
_BUCKET_BATCHES = 64


class BatchOrder(DistributedSampler[list[int]]):
    """Yields lists of row indices, one list per batch of this rank.

    It is a `DistributedSampler` so that Lightning calls `set_epoch` and leaves it alone under DDP, and
    goes with ``DataLoader(dataset, sampler=order, batch_size=None)``.

    Args:
        lengths: ``[P]`` tokens per row.
        batch_size: rows per batch.
        batch_tokens: tokens per batch instead; a longer row is a batch of its own.
        length_bucketing: batches of rows of similar length.
        shuffle: another order each epoch.
        evaluation: every row counts: none may stay out.
        drop_last: leave out the last batch when it has less than ``batch_size`` rows.
        seed: of the order.
        num_replicas: number of ranks that share the rows.
        rank: number of this one.
        shares: for a mixture, ``(rows of each source, weight of each source)``: an epoch keeps its length,
            and each source has its share of it. What is left out or repeated moves on from epoch to epoch.
        repeat: how often each batch is given, the times one after another, on every rank for itself.

    To go on in the middle of an epoch, call `start_at` with what `position` and `repeats_done` gave before.
    ``len()`` stays that of the full epoch, repeated batches counted each time.
    """

    def __init__(
        self,
        lengths: Sequence[int] | Tensor,
        batch_size: int = 8,
        *,
        batch_tokens: int | None = None,
        length_bucketing: bool = False,
        shuffle: bool = True,
        evaluation: bool = False,
        drop_last: bool = False,
        seed: int = 0,
        num_replicas: int = 1,
        rank: int = 0,
        shares: tuple[Sequence[int], Sequence[float]] | None = None,
        repeat: int = 1,
    ) -> None:
        if not 0 <= rank < num_replicas:
            raise ValueError(f"rank {rank} is none of {num_replicas}")
        if repeat < 1:
            raise ValueError(f"repeat is {repeat}; a batch is given at least once")
        self.lengths = [int(n) for n in lengths]
        if len(self.lengths) < num_replicas:
            raise ValueError(
                f"{len(self.lengths)} rows for {num_replicas} ranks: some would have nothing to do"
            )
        self.batch_size = batch_size
        self.batch_tokens = batch_tokens
        self.length_bucketing = length_bucketing
        self.shuffle = shuffle
        self.evaluation = evaluation
        self.drop_last = drop_last
        self.seed = seed
        self.num_replicas = num_replicas
        self.rank = rank
        self.shares = shares
        self.repeat = repeat
        self.epoch = 0
        self._start = (0, 0, 0)
        self._planned: tuple[int, list[list[int]]] | None = None

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; Lightning calls this."""
        self.epoch = epoch

    def start_at(self, epoch: int, rows: int, repeats: int = 0) -> None:
        """Leave out the first rows of one epoch, counted over all ranks: they have been seen.

        Args:
            epoch: the one to go on with.
            rows: what `position` gave.
            repeats: what `repeats_done` gave: how often the batch behind these rows has been given.
        """
        self._start = (epoch, rows, repeats)

    @property
    def skip(self) -> int:
        """Rows that the current epoch leaves out at its start."""
        epoch, rows, _ = self._start
        return rows if epoch == self.epoch else 0

    @property
    def skipped_repeats(self) -> int:
        """Times that the first batch of the current epoch is not given again."""
        epoch, _, repeats = self._start
        return min(repeats, self.repeat) if epoch == self.epoch else 0

    def __len__(self) -> int:
        return len(self._rounds(self.batches())) // self.num_replicas * self.repeat

    def __iter__(self) -> Iterator[list[int]]:
        remaining = self._rounds(_without_first(self.batches(), self.skip))
        mine = remaining[self.rank :: self.num_replicas]
        return iter([batch for batch in mine for _ in range(self.repeat)][self.skipped_repeats :])

    def position(self, batches_done: int) -> int:
        """Rows of this epoch that all ranks together are through with after so many batches each.

        Batches are counted from where iteration began: the start of the epoch, or where `start_at` put it,
        and repeated ones each time; the rows of a batch that will be given again are not yet done.
        The number is the one to give to `start_at` in order to go on, with as many ranks or with others.
        """
        rounds = self._rounds(_without_first(self.batches(), self.skip))
        whole = (batches_done + self.skipped_repeats) // self.repeat
        return self.skip + sum(map(len, rounds[: whole * self.num_replicas]))

    def repeats_done(self, batches_done: int) -> int:
        """How often the batch behind `position` has been given by then, less than ``repeat`` times."""
        return (batches_done + self.skipped_repeats) % self.repeat

    def batches(self) -> list[list[int]]:
        """All batches of the epoch, in order, before ranks share them."""
        if self._planned is None or self._planned[0] != self.epoch:
            self._planned = (self.epoch, self._plan())
        return self._planned[1]

    def _plan(self) -> list[list[int]]:
        generator = torch.Generator().manual_seed(_mix(self.seed, self.epoch))
        order = self._order(generator)
        if not self.length_bucketing:
            return self._cut(order)
        mean = max(1, sum(self.lengths) // len(self.lengths))
        rows = max(1, self.batch_tokens // mean) if self.batch_tokens else self.batch_size
        size = rows * _BUCKET_BATCHES
        batches = []
        for start in range(0, len(order), size):
            bucket = sorted(order[start : start + size], key=self.lengths.__getitem__)
            batches += self._cut(bucket)
        if self.shuffle:
            batches = [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]
        return batches

    def _order(self, generator: torch.Generator) -> list[int]:
        if not self.shuffle:
            return list(range(len(self.lengths)))
        if self.shares is None:
            return _permutation(len(self.lengths), generator)
        drawn = self._drawn(*self.shares)
        return [drawn[i] for i in _permutation(len(drawn), generator)]

    def _drawn(self, sizes: Sequence[int], weights: Sequence[float]) -> list[int]:
        """Rows of a mixture for this epoch: a stretch of each source's endless row of shuffled passes."""
        total, offset, drawn = sum(sizes), 0, []
        for source, (size, weight) in enumerate(zip(sizes, weights, strict=True)):
            count = max(1, round(total * weight / sum(weights)))
            first = self.epoch * count
            passes: dict[int, list[int]] = {}
            for at in range(first, first + count):
                lap, place = divmod(at, size)
                if lap not in passes:
                    generator = torch.Generator().manual_seed(_mix(self.seed, lap, source + 1))
                    passes[lap] = _permutation(size, generator)
                drawn.append(offset + passes[lap][place])
            offset += size
        return drawn

    def _cut(self, order: list[int]) -> list[list[int]]:
        if self.batch_tokens is None:
            batches = [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)]
            if self.drop_last and len(batches[-1]) < self.batch_size:
                batches.pop()
            return batches
        batches, tokens = [], self.batch_tokens + 1
        for i in order:
            if tokens + self.lengths[i] > self.batch_tokens:
                batches.append([i])
                tokens = self.lengths[i]
            else:
                batches[-1].append(i)
                tokens += self.lengths[i]
        return batches

    def _rounds(self, batches: list[list[int]]) -> list[list[int]]:
        """Batches whose number the ranks can share evenly."""
        world = self.num_replicas
        whole = len(batches) - len(batches) % world
        tail = [list(batch) for batch in batches[whole:]]
        while 0 < len(tail) < world and max(map(len, tail)) > 1:
            at = max(range(len(tail)), key=lambda i: len(tail[i]))
            half = (len(tail[at]) + 1) // 2
            tail[at : at + 1] = [tail[at][:half], tail[at][half:]]
        if len(tail) in (0, world):
            return batches[:whole] + tail
        if not self.evaluation or whole == 0:
            return batches[:whole]
        last = [list(batch) for batch in batches[whole - len(tail) : whole]]
        merged = [batch + more for batch, more in zip(last, tail, strict=True)]
        return batches[: whole - len(tail)] + merged


def _permutation(n: int, generator: torch.Generator) -> list[int]:
    order: list[int] = torch.randperm(n, generator=generator).tolist()
    return order


def _mix(*numbers: int) -> int:
    """One 63-bit seed from several numbers."""
    seed = 0
    for number in numbers:
        # Knuth's multiplier; neighbouring epochs must not share a generator's state.
        seed = (seed * 6364136223846793005 + number + 1442695040888963407) % 2**63
    return seed


def _without_first(batches: list[list[int]], rows: int) -> list[list[int]]:
    """Batches without the first rows; a batch that begins among them keeps its rest."""
    for at, batch in enumerate(batches):
        if rows < len(batch):
            return [batch[rows:], *batches[at + 1 :]]
        rows -= len(batch)
    return []
