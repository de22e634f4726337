"""From records to tokenised rows: draft, tokenise, truncate, count; and whole sources to tables."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Protocol

from lightning.pytorch.utilities import rank_zero_info

from lit_align.datamodules.bad_rows import BadRow, BadRows, DataError, OnBadRow
from lit_align.datamodules.cache import FORMAT, TokenCache, digest_of, tokenizer_digest
from lit_align.datamodules.sources import Record, RowSource
from lit_align.datamodules.table import TokenTable
from lit_align.datamodules.tokenize import Draft, Encoder, Row
from lit_align.datamodules.truncation import Limits, check_lost, truncate

#: Rows that go through the tokenizer in one call.
_CHUNK = 1000


class Drafter(Protocol):
    """What a DataModule knows about its rows: how one becomes text with weights."""

    def __call__(self, record: Record, counts: Counter[str]) -> Draft | None:
        """Draft a row, or count why it is left out and return ``None``.

        Raises:
            BadRow: the row cannot be used.
        """
        ...

    def options(self) -> dict[str, Any]:
        """Every setting that shapes a draft, as plain data."""
        ...


@dataclass
class Pipeline:
    """Records to rows.

    Attributes:
        drafter: a row as text.
        encoder: text as tokens.
        limits: how long a row may be.
        on_bad_row: what to do about rows that cannot be used.
        allow_dropped: fraction of the rows that truncation may take.
        counts: what became of the rows so far.
        longest_prompt: of all rows so far, in tokens, before truncation.
    """

    drafter: Drafter
    encoder: Encoder
    limits: Limits
    on_bad_row: OnBadRow
    allow_dropped: float
    counts: Counter[str] = field(default_factory=Counter)
    longest_prompt: int = 0

    def rows(self, records: Iterable[Record], chunk: int = _CHUNK) -> Iterator[Row]:
        """Tokenised rows in the order of the records, without those that were left out."""
        bad = BadRows(self.on_bad_row, self.counts)
        iterator = iter(records)
        while some := list(islice(iterator, chunk)):
            self.counts["rows_read"] += len(some)
            for row in self.encoder.rows(list(self._drafts(some, bad))):
                if isinstance(row, BadRow):
                    bad.handle(row)
                    continue
                self.longest_prompt = max(self.longest_prompt, len(row.prompt))
                cut = truncate(row, self.limits, self.counts)
                if cut is not None:
                    self.counts["rows_kept"] += 1
                    self.counts["tokens"] += cut.num_tokens
                    yield cut

    def check_lost(self, name: str) -> None:
        """Refuse to go on when truncation took too many rows."""
        check_lost(self.counts, name, self.allow_dropped, self.limits, self.longest_prompt)

    def fresh(self) -> "Pipeline":
        """The same pipeline with nothing counted."""
        return replace(self, counts=Counter(), longest_prompt=0)

    def key(self, source: RowSource) -> str:
        """The digest under which a source's tokens are cached."""
        return digest_of(
            [
                FORMAT,
                source.fingerprint(),
                tokenizer_digest(self.encoder.tokenizer),
                vars(self.limits),
                self.drafter.options(),
                # A cached table must not hide the rows, or the losses, that these two refuse.
                self.on_bad_row,
                self.allow_dropped,
            ]
        )

    def _drafts(self, records: list[Record], bad: BadRows) -> Iterator[Draft]:
        for record in records:
            try:
                draft = self.drafter(record, self.counts)
            except BadRow as error:
                bad.handle(error)
                continue
            if draft is not None:
                yield draft


def build_table(source: RowSource, pipeline: Pipeline, cache: TokenCache) -> tuple[TokenTable, Counter[str]]:
    """A source's tokens, from the cache where it has them.

    Args:
        source: the rows.
        pipeline: what becomes of them; nothing counted yet.
        cache: where to look, and where to put what was made.

    Returns:
        The table, and the counts of what became of the rows.

    Raises:
        DataError: no row is left, or truncation took too many.
    """
    key = pipeline.key(source)
    found = cache.load(key)
    if found is not None:
        return found
    table = TokenTable.from_rows(pipeline.rows(source))
    pipeline.check_lost(source.name)
    if not len(table):
        left_out = {name: n for name, n in pipeline.counts.items() if n and name != "rows_read"}
        raise DataError(
            f"{source.name}: no usable row among {pipeline.counts['rows_read']}"
            + (f": {left_out}" if left_out else "")
        )
    cache.save(key, table, pipeline.counts)
    return table, pipeline.counts


def log_report(split: str, counts: Counter[str]) -> None:
    """Say once what became of the rows of a split.

    The counts that are zero are left out; the rest stand under the names that ``report`` has.
    """
    rest = [
        f"{name} {n:,}"
        for name, n in counts.items()
        if n and name not in ("rows_read", "rows_kept", "tokens")
    ]
    rank_zero_info(
        f"{split}: {counts['rows_kept']:,} of {counts['rows_read']:,} rows, {counts['tokens']:,} tokens"
        + (f" ({', '.join(rest)})" if rest else "")
    )
