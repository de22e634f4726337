"""The digest of a file, or of a directory of files, whoever of several processes reads them."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any


def sha256_of(path: Path) -> str:
    """SHA-256 of a file; of a directory, that of the sorted list of its files with theirs.

    Links inside a directory are no content.
    """
    return shared_sha256(path, 0, 1, lambda mine: [mine])


def shared_sha256(path: Path, rank: int, world: int, gather: Callable[[Any], list[Any]]) -> str:
    """The same, each of several processes reading its share of the files.

    Args:
        path: file or directory, on a file system that all processes see.
        rank: number of this process.
        world: how many there are; all call this.
        gather: gives every process the objects of all.
    """
    if not path.is_dir():
        return _of_file(path)
    names = sorted(_files(path))
    mine = {name: _of_file(path / name) for name in names[rank::world]}
    found = {name: digest for part in gather(mine) for name, digest in part.items()}
    listing = "".join(f"{digest}  {name}\n" for name, digest in sorted(found.items()))
    return hashlib.sha256(listing.encode()).hexdigest()


def bytes_of(path: Path) -> int:
    """Size of a file, or of all files in a directory."""
    if not path.is_dir():
        return path.stat().st_size
    return sum((path / name).stat().st_size for name in _files(path))


def _files(directory: Path) -> list[str]:
    return [
        file.relative_to(directory).as_posix()
        for file in directory.rglob("*")
        if file.is_file() and not file.is_symlink()
    ]


def _of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
