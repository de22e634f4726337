"""Errors about data, written for the person who has to repair the file, and the rule for bad rows."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Literal

from lightning.pytorch.utilities import rank_zero_warn

OnBadRow = Literal["error", "drop", "warn"]

#: Warnings about single rows after which only the count goes on.
_SHOWN = 10


class DataError(ValueError):
    """Something is wrong with a source of data as a whole: its name, its format, its columns."""


class BadRow(DataError):
    """One row cannot be used. ``where`` names the file, the row and the column."""

    def __init__(self, where: str, problem: str) -> None:
        super().__init__(f"{where}: {problem}")


@dataclass
class BadRows:
    """What to do about a row that cannot be used, and how often it was done.

    Attributes:
        rule: ``error`` raises at the first one, ``warn`` drops it and says so, ``drop`` drops and counts.
        counts: dropped rows under the key ``bad_rows``.
    """

    rule: OnBadRow
    counts: Counter[str] = field(default_factory=Counter)

    def handle(self, error: BadRow) -> None:
        """Apply the rule to one bad row.

        Raises:
            BadRow: when the rule is ``error``.
        """
        if self.rule == "error":
            raise BadRow(str(error), "(on_bad_row: drop or warn would leave such rows out)") from error
        self.counts["bad_rows"] += 1
        if self.rule == "warn" and self.counts["bad_rows"] <= _SHOWN:
            rest = "; further ones are only counted" if self.counts["bad_rows"] == _SHOWN else ""
            rank_zero_warn(f"row left out: {error}{rest}")


def nearest(name: str, names: Iterable[str]) -> str:
    """A hint that names the closest spelling, or nothing when none is close.

    >>> nearest("prompts", ["prompt", "answer"])
    " (did you mean 'prompt'?)"
    >>> nearest("xyz", ["prompt", "answer"])
    ''
    """
    close = get_close_matches(str(name), [str(n) for n in names], n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def shown(value: object, limit: int = 60) -> str:
    """A value as it stands in an error message: its type and its beginning.

    >>> shown("hello")
    "str 'hello'"
    """
    if value is None:
        return "null"
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= limit else text[: limit - 1] + '…'}"
