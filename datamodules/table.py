"""All rows of a source as tokens, in a few plain arrays."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from lit_align.datamodules.tokenize import Row


@dataclass(frozen=True)
class TokenTable:
    """Tokenised rows, one after another.

    Attributes:
        prompt_ids: ``[sum of prompt lengths]`` int32.
        prompt_offsets: ``[P + 1]`` starts in ``prompt_ids``, and its end.
        completion_ids: ``[N]`` int32.
        completion_offsets: ``[C + 1]`` starts in ``completion_ids``, and its end.
        weights: ``[N]`` float32.
        children: ``[P + 1]`` first completion of each prompt, and ``C``.
        rows: ``[P]`` row numbers in the source.
        columns: ``[P]`` float32 each, by name.
        records: ``[bytes]`` uint8, the rows as they were read, as JSON; ``None`` where nobody asks for them.
        record_offsets: ``[P + 1]`` starts in ``records``, and its end.
    """

    prompt_ids: Tensor
    prompt_offsets: Tensor
    completion_ids: Tensor
    completion_offsets: Tensor
    weights: Tensor
    children: Tensor
    rows: Tensor
    columns: dict[str, Tensor]
    records: Tensor | None = None
    record_offsets: Tensor | None = None

    @classmethod
    def from_rows(cls, rows: Iterable[Row]) -> "TokenTable":
        """Build the arrays; ``columns`` are those of the first row.

        >>> table = TokenTable.from_rows([Row(4, [1, 2], [[3], [4, 5]], [[1.0], [1.0, 1.0]], {})])
        >>> len(table), table.lengths.tolist(), table[0].completions
        (1, [7], [[3], [4, 5]])
        """
        parts = list(rows)
        completions = [ids for row in parts for ids in row.completions]
        names = list(parts[0].columns) if parts else []
        records = [row.record.encode() for row in parts if row.record is not None]
        return cls(
            prompt_ids=torch.tensor([t for row in parts for t in row.prompt], dtype=torch.int32),
            prompt_offsets=_offsets(len(row.prompt) for row in parts),
            completion_ids=torch.tensor([t for ids in completions for t in ids], dtype=torch.int32),
            completion_offsets=_offsets(len(ids) for ids in completions),
            weights=torch.tensor(
                [w for row in parts for mass in row.weights for w in mass], dtype=torch.float32
            ),
            children=_offsets(len(row.completions) for row in parts),
            rows=torch.tensor([row.row for row in parts], dtype=torch.int64),
            columns={name: torch.tensor([row.columns[name] for row in parts]) for name in names},
            records=_bytes(b"".join(records)) if records else None,
            record_offsets=_offsets(map(len, records)) if records else None,
        )

    @classmethod
    def concatenate(cls, tables: Sequence["TokenTable"]) -> "TokenTable":
        """Tables one after another; columns that not all of them have are refused.

        Raises:
            ValueError: the tables have different columns.
        """
        if len(tables) == 1:
            return tables[0]
        names = list(tables[0].columns)
        for table in tables:
            if set(table.columns) != set(names):
                raise ValueError(
                    f"sources differ in their columns: {sorted(names)} and {sorted(table.columns)}"
                )
        return cls(
            prompt_ids=torch.cat([t.prompt_ids for t in tables]),
            prompt_offsets=_joined([t.prompt_offsets for t in tables]),
            completion_ids=torch.cat([t.completion_ids for t in tables]),
            completion_offsets=_joined([t.completion_offsets for t in tables]),
            weights=torch.cat([t.weights for t in tables]),
            children=_joined([t.children for t in tables]),
            rows=torch.cat([t.rows for t in tables]),
            columns={name: torch.cat([t.columns[name] for t in tables]) for name in names},
            records=_all([t.records for t in tables], _concatenated),
            record_offsets=_all([t.record_offsets for t in tables], _joined),
        )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Row:
        first, last = int(self.children[i]), int(self.children[i + 1])
        a, b = int(self.prompt_offsets[i]), int(self.prompt_offsets[i + 1])
        ends = self.completion_offsets[first : last + 1].tolist()
        spans = list(pairwise(ends))
        return Row(
            row=int(self.rows[i]),
            prompt=self.prompt_ids[a:b].tolist(),
            completions=[self.completion_ids[x:y].tolist() for x, y in spans],
            weights=[self.weights[x:y].tolist() for x, y in spans],
            columns={name: float(values[i]) for name, values in self.columns.items()},
            record=self._record(i),
        )

    def _record(self, i: int) -> str | None:
        if self.records is None or self.record_offsets is None:
            return None
        a, b = int(self.record_offsets[i]), int(self.record_offsets[i + 1])
        return self.records[a:b].numpy().tobytes().decode()

    @property
    def lengths(self) -> Tensor:
        """``[P]`` tokens of each row's sequences (`Row.num_tokens`)."""
        completions = self.completion_offsets[self.children].diff()
        return completions + self.prompt_offsets.diff() * self.children.diff().clamp_min(1)

    def select(self, indices: Sequence[int]) -> "TokenTable":
        """The table of some rows, in the order given."""
        return TokenTable.from_rows(self[i] for i in indices)

    def tensors(self) -> dict[str, Tensor]:
        """Every array by a name of its own, as `from_tensors` takes them back."""
        own = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        return own | {f"columns.{name}": value for name, value in self.columns.items()}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> "TokenTable":
        """The table that `tensors` took apart."""
        prefix = "columns."
        columns = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        return cls(**{k: v for k, v in tensors.items() if not k.startswith(prefix)}, columns=columns)


def _offsets(lengths: Iterable[int]) -> Tensor:
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int64)


def _bytes(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def _concatenated(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts)


def _all(parts: Sequence[Tensor | None], join: Callable[[list[Tensor]], Tensor]) -> Tensor | None:
    """Parts joined where every table has one."""
    found = [part for part in parts if part is not None]
    return join(found) if len(found) == len(parts) else None


def _joined(offsets: Sequence[Tensor]) -> Tensor:
    """Offsets of concatenated arrays."""
    starts = [0, *accumulate(int(one[-1]) for one in offsets)]
    shifted = [one[:-1] + start for one, start in zip(offsets, starts, strict=False)]
    return torch.cat([*shifted, torch.tensor([starts[-1]])])
