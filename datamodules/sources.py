"""Where rows come from: files, directories, the Hub, the package, or objects in memory.

A source is something that can be read again and again, a row at a time, and that knows a
fingerprint of its content.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from lit_align.datamodules.bad_rows import DataError, shown
from lit_align.datamodules.naming import looks_like_path, missing_path, split_name
from lit_align.datamodules.readers import SUFFIXES, data_suffix, read_rows
from lit_align.shipped import PREFIX, find


@dataclass(frozen=True)
class Record:
    """One row as it was read.

    Attributes:
        row: its number in the source, from 0.
        where: the source and the row, for messages.
        values: column to value.
    """

    row: int
    where: str
    values: Any


class RowSource(Protocol):
    """Rows that can be read from the start any number of times."""

    @property
    def name(self) -> str:
        """What messages call it."""
        ...

    def __iter__(self) -> Iterator[Record]: ...

    def fingerprint(self) -> str:
        """A digest of the content: equal content, equal digest."""
        ...


@dataclass(frozen=True)
class Files:
    """Data files, one after another."""

    name: str
    paths: tuple[Path, ...]

    def __iter__(self) -> Iterator[Record]:
        row = 0
        for path in self.paths:
            for place, values in read_rows(path):
                where = f"{path}, row {row} ({place})" if place else f"{path}, row {row}"
                yield Record(row, where, values)
                row += 1

    def fingerprint(self) -> str:
        """SHA-256 of the files' bytes; their names do not matter, their order does."""
        digest = hashlib.sha256()
        for path in self.paths:
            with open(path, "rb") as file:
                digest.update(data_suffix(path).encode() + hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()


@dataclass(frozen=True)
class InMemory:
    """A list of dicts, a ``datasets.Dataset``, or any other iterable that can be read twice."""

    name: str
    rows: Iterable[Any]

    def __iter__(self) -> Iterator[Record]:
        for row, values in enumerate(self.rows):
            yield Record(row, f"{self.name}, row {row}", values)

    def fingerprint(self) -> str:
        """SHA-256 of the rows as JSON."""
        digest = hashlib.sha256()
        for values in self.rows:
            digest.update(json.dumps(values, sort_keys=True, default=repr).encode() + b"\n")
        return digest.hexdigest()


@dataclass(frozen=True)
class Limited:
    """The first rows of another source."""

    source: RowSource
    limit: int

    @property
    def name(self) -> str:
        """The name of the source behind it."""
        return self.source.name

    def __iter__(self) -> Iterator[Record]:
        return islice(self.source, self.limit)

    def fingerprint(self) -> str:
        """The other source's, and the limit."""
        return f"{self.source.fingerprint()}[:{self.limit}]"


def open_sources(
    spec: Any, streaming: bool = False, limit: int | None = None
) -> list[tuple[RowSource, float]]:
    """Turn what the user gave into sources, each with its share of an epoch.

    Args:
        spec: see `lit_align.datamodules.options.Source`.
        streaming: read a Hub data set over the network as it is used, without downloading it first.
        limit: read at most so many rows of each source.

    Returns:
        Sources and weights; all weights are 1 unless ``spec`` is a mixture.

    Raises:
        DataError: a name or a type that is not a source, with the nearest file where there is one.
    """
    if isinstance(spec, Mapping):
        mixture = _mixture(spec)
    elif isinstance(spec, Sequence) and not isinstance(spec, str) and not _is_rows(spec):
        mixture = [(one, 1.0) for one in spec]
    else:
        mixture = [(spec, 1.0)]
    if not mixture:
        raise DataError("an empty list is no source of data")
    opened: list[tuple[RowSource, float]] = []
    for one, weight in mixture:
        source = _open_one(one, streaming)
        opened.append((Limited(source, limit) if limit else source, weight))
    return opened


def validation_of(spec: Any) -> str | None:
    """The held-out split of a shipped data set; ``None`` for everybody else's data.

    >>> validation_of("lit-align/manners-pairs")
    'lit-align/manners-pairs:validation'
    """
    shipped = isinstance(spec, str) and spec.startswith(PREFIX) and ":" not in spec
    return f"{spec}:validation" if shipped else None


def _mixture(spec: Mapping[Any, Any]) -> list[tuple[Any, float]]:
    for name, weight in spec.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or weight <= 0:
            raise DataError(
                f"a mixture maps sources to positive weights; {name!r} has {shown(weight)}. "
                "Rows in memory go into a list: train=[row, row, ...]. Of a DatasetDict, give one split"
            )
    return [(name, float(weight)) for name, weight in spec.items()]


def _is_rows(spec: Sequence[Any]) -> bool:
    return len(spec) > 0 and isinstance(spec[0], Mapping)


def _open_one(spec: Any, streaming: bool) -> RowSource:
    if isinstance(spec, Path):
        spec = str(spec)
    if isinstance(spec, str):
        return _open_named(spec, streaming)
    if isinstance(spec, Mapping):
        raise DataError(f"expected a source, found a single row: {shown(spec)}; put rows in a list")
    if hasattr(spec, "keys") or not isinstance(spec, Iterable) or isinstance(spec, Iterator):
        raise DataError(
            f"expected a name, a path, a data set, or a list of rows, found {shown(spec)}; "
            "an iterator can be read only once: make it a list"
        )
    return InMemory(f"<{type(spec).__name__} in memory>", spec)


def _open_named(name: str, streaming: bool) -> RowSource:
    try:
        shipped = find(name)
    except ValueError as error:
        raise DataError(str(error)) from error
    if shipped is not None:
        if shipped.is_dir():
            raise DataError(f"{name!r} is a model, not a data set")
        return Files(name, (shipped,))
    path = Path(name).expanduser()
    if path.is_file():
        return Files(name, (path,))
    base, split = split_name(name)
    folder = Path(base).expanduser()
    if folder.is_dir():
        return _open_folder(folder, split)
    if looks_like_path(name):
        raise DataError(missing_path(path))
    from lit_align.datamodules.hub import load_from_hub

    return InMemory(name, load_from_hub(base, split, streaming))


def _open_folder(folder: Path, split: str | None) -> RowSource:
    from lit_align.datamodules.hub import is_saved, load_saved

    if is_saved(folder):
        return InMemory(str(folder), load_saved(folder, split))
    files = sorted(p for p in folder.iterdir() if p.is_file() and data_suffix(p) in SUFFIXES)
    if not files:
        raise DataError(f"{folder}: a directory without data files ({', '.join(SUFFIXES)}, plain or .gz)")
    if split is not None:
        of_split = [p for p in files if p.name.startswith(split)]
        if not of_split:
            names = ", ".join(p.name for p in files[:10])
            raise DataError(f"{folder}: no file begins with {split!r}; it has {names}")
        files = of_split
    return Files(str(folder), tuple(files))
