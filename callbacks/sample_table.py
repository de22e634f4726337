"""Samples as a table for people."""

import io
import shutil
from collections.abc import Sequence
from typing import NamedTuple

#: Of the table.
COLUMNS = ("prompt", "decoding", "before training", "now")

#: Characters of a text that a terminal gets; files and loggers get all.
_SHOWN = 400


class Sample(NamedTuple):
    """A completion of a fixed prompt, and the one before training, if that is known."""

    row: int
    mode: str
    prompt: str
    before: str | None
    completion: str


def table(samples: Sequence[Sample]) -> list[list[str]]:
    """Rows of :data:`COLUMNS`."""
    return [[s.prompt, s.mode, s.before if s.before is not None else "", s.completion] for s in samples]


def render(title: str, rows: Sequence[Sequence[str]]) -> str:
    """The table as text, as wide as the terminal."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(title=title, show_lines=True)
    for name in COLUMNS:
        drawn.add_column(name, overflow="fold", ratio=None if name == "decoding" else 1)
    for row in rows:
        drawn.add_row(*[Text(printable(text)) for text in row])
    console = Console(file=io.StringIO(), width=shutil.get_terminal_size((100, 24)).columns)
    console.print(drawn)
    return console.file.getvalue()  # type: ignore[attr-defined]


def printable(text: str, length: int = _SHOWN) -> str:
    """The beginning of a text, without the codes that move a terminal's cursor, which a model may write."""
    shown = "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text[:length])
    return shown + (" …" if len(text) > length else "")
