"""Files to rows: JSONL, JSON, CSV and Parquet, plain or gzipped, read a piece at a time."""

import csv
import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from lit_align.datamodules.bad_rows import DataError, nearest, shown

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")

#: Rows that a Parquet file is decoded by.
_PARQUET_BATCH = 1024


@dataclass(frozen=True)
class Unreadable:
    """Stands for a row that could not be decoded, so that one broken line is one bad row.

    Attributes:
        problem: what is wrong with it.
    """

    problem: str


def data_suffix(path: Path) -> str:
    """The suffix that tells the format, without a trailing ``.gz``.

    >>> data_suffix(Path("pairs.JSONL.gz"))
    '.jsonl'
    """
    name = path.name.lower().removesuffix(".gz")
    return Path(name).suffix


def read_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield each row of a file with its place in it (``"line 3"``; empty where lines mean nothing).

    Raises:
        DataError: an unknown suffix, or a file that is not what its suffix says.
    """
    suffix = data_suffix(path)
    if suffix not in SUFFIXES:
        hint = nearest(suffix, SUFFIXES)
        raise DataError(
            f"{path}: unknown suffix {suffix!r}{hint}; files are read as {', '.join(SUFFIXES)} (.gz)"
        )
    if suffix == ".parquet":
        yield from _parquet(path)
        return
    try:
        with _open_text(path) as file:
            if suffix == ".json":
                yield from _json(path, file)
            elif suffix in (".csv", ".tsv"):
                yield from _csv(file, "\t" if suffix == ".tsv" else ",")
            else:
                yield from _jsonl(file)
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 {suffix} text ({error})") from error


def _open_text(path: Path) -> IO[str]:
    # utf-8-sig: a byte-order mark would otherwise become part of the first column's name.
    if path.name.lower().endswith(".gz"):
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return open(path, encoding="utf-8-sig", newline="")


def _jsonl(file: IO[str]) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.strip())
        except json.JSONDecodeError as error:
            row = Unreadable(f"not JSON ({error.msg}, character {error.colno}): {shown(line.strip())}")
        yield f"line {number}", row


def _json(path: Path, file: IO[str]) -> Iterator[tuple[str, Any]]:
    try:
        rows = json.load(file)
    except json.JSONDecodeError as error:
        hint = "; a file with one JSON object a line is named .jsonl" if error.msg == "Extra data" else ""
        raise DataError(f"{path}, line {error.lineno}: not JSON ({error.msg}){hint}") from error
    if not isinstance(rows, list):
        raise DataError(f"{path}: expected a list of rows, found {shown(rows)}")
    yield from (("", row) for row in rows)


def _csv(file: IO[str], delimiter: str) -> Iterator[tuple[str, Any]]:
    # The default of 128 KiB a field is less than one long document.
    csv.field_size_limit(2**30)
    reader = csv.DictReader(file, delimiter=delimiter)
    for row in reader:
        yield f"line {reader.line_num}", row


def _parquet(path: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(path)
        for batch in table.iter_batches(batch_size=_PARQUET_BATCH):
            yield from (("", row) for row in batch.to_pylist())
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{path}: not a Parquet file ({error})") from error
