"""Files that are there whole or not at all, also after a crash of the machine."""

import errno
import hashlib
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

_TEMPORARY = re.compile(r"^\..+\.(?P<host>[^.]+)-(?P<pid>\d+)\.tmp$")
#: Seconds after which a temporary file of another machine is litter.
_STALE = 24 * 3600


class DiskFull(OSError):
    """A file could not be written because there is no room; what was there before is untouched."""


class HashingWriter:
    """A binary file to write to that knows the SHA-256 and the size of what it was given.

    Args:
        file: where the bytes go.

    Attributes:
        bytes: bytes written.
        error: the first error of the file, which a library in between may report as something else.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.bytes = 0
        self.error: OSError | None = None
        self._digest = hashlib.sha256()

    def write(self, data: Any) -> int:
        """Write and digest."""
        if self.error is not None:
            # A library that writes its last words after an error must not hide the first.
            return len(data)
        try:
            self.file.write(data)
        except OSError as error:
            self.error = error
            raise
        self._digest.update(data)
        self.bytes += len(data)
        return len(data)

    def flush(self) -> None:
        """Hand everything to the system."""
        if self.error is None:
            self.file.flush()

    @property
    def sha256(self) -> str:
        """Of everything written so far."""
        return self._digest.hexdigest()


@contextmanager
def replacing(path: Path, before: Callable[[HashingWriter], None] | None = None) -> Iterator[HashingWriter]:
    """Write a file anew: beside the old one, to the disk, and then in its place.

    When the block raises, or the process dies, the old file is there as it was.

    Args:
        path: the file; its directory is made.
        before: called when all is on the disk and only the place is still the old file's.

    Raises:
        DiskFull: no room.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    writer = HashingWriter(open(temporary, "wb"))  # noqa: SIM115
    try:
        with writer.file:
            yield writer
            if writer.error is not None:
                raise writer.error
            writer.file.flush()
            os.fsync(writer.file.fileno())
        if before is not None:
            before(writer)
        os.replace(temporary, path)
        # The rename is in the directory, which is a file of its own.
        sync(path.parent)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        raise _named(error, writer, path) from error


def temporary_beside(path: Path) -> Path:
    """Where this process writes what will become ``path``; :func:`remove_litter` knows such names."""
    # In the same directory: a rename from elsewhere would be a copy, which can be cut off.
    return path.parent / f".{path.name}.{_host()}-{os.getpid()}.tmp"


def remove_litter(directory: Path) -> None:
    """Remove temporary files and directories of processes that are no more."""
    for path in directory.glob(".*.tmp"):
        found = _TEMPORARY.match(path.name)
        if found is None:
            continue
        if found["host"] == _host():
            # One with our own number is of an earlier process that had it: we write one file at a time.
            dead = int(found["pid"]) == os.getpid() or not _alive(int(found["pid"]))
        else:
            try:
                dead = time.time() - path.stat().st_mtime > _STALE
            except FileNotFoundError:
                # Its owner has put it in its place since it was listed.
                continue
        if dead:
            remove(path)


def remove(path: Path) -> None:
    """Remove a file, or a directory with all that is in it; nothing there is no error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until a file, or the list of names in a directory, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _named(error: BaseException, writer: HashingWriter, path: Path) -> BaseException:
    cause = writer.error or error
    if isinstance(cause, DiskFull):
        return cause
    if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
        return disk_full(path, f" after {writer.bytes:,} bytes")
    return cause


def disk_full(path: Path, progress: str = "") -> DiskFull:
    """The error that says so, for a file or directory that could not be written."""
    free = shutil.disk_usage(path.parent).free
    return DiskFull(
        errno.ENOSPC,
        f"no room for {path.name}{progress}, {free:,} are free; what was saved before "
        "is untouched. Make room, or save elsewhere or less often, and resume",
        str(path.parent),
    )


def _host() -> str:
    return re.sub(r"[^a-zA-Z0-9]", "_", socket.gethostname())


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
