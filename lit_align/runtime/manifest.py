"""What a checkpoint must contain: whether it is complete, and whether it is still what was written.

A checkpoint is a file, or a directory of files that several processes wrote. ``NAME.manifest.json`` is
written after ``NAME``, so that its presence says that ``NAME`` is complete. Where a checkpoint takes the
place of an older one of the same name, the manifest names both contents until the change is done: at no
moment is there nothing that verifies.
"""

import json
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from lit_align.runtime.atomic_file import replacing
from lit_align.runtime.digest import bytes_of, sha256_of

logger = logging.getLogger(__name__)

SUFFIX = ".manifest.json"
#: In a checkpoint that is a directory: where the pieces of its tensors lie.
INDEX = "index.json"


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used."""


@dataclass(frozen=True)
class Content:
    """One content that a checkpoint may have.

    Attributes:
        sha256: see :func:`lit_align.runtime.digest.sha256_of`.
        bytes: size of the file, or of all files.
        step: optimiser steps before it.
        epoch: epoch it was saved in.
        saved_at: seconds since 1970.
    """

    sha256: str
    bytes: int
    step: int
    epoch: int
    saved_at: float

    @classmethod
    def now(cls, sha256: str, size: int, step: int, epoch: int) -> "Content":
        """Content that was written just now."""
        return cls(sha256, size, step, epoch, time.time())


@dataclass(frozen=True)
class Manifest:
    """The contents that are right for a checkpoint, the newest first.

    Attributes:
        accepted: one, or two while an older file is being replaced.
        superseded: whether it may be removed as soon as enough others are there.
    """

    accepted: tuple[Content, ...]
    superseded: bool = False

    def write(self, checkpoint: Path) -> None:
        """Write it beside its checkpoint."""
        content = {
            "format": 1,
            "file": checkpoint.name,
            "accepted": [asdict(one) for one in self.accepted],
            "superseded": self.superseded,
            "complete": True,
        }
        with replacing(manifest_path(checkpoint)) as file:
            file.write((json.dumps(content, indent=1) + "\n").encode())

    def supersede(self) -> "Manifest":
        """The same, free to be removed."""
        return replace(self, superseded=True)


def manifest_path(checkpoint: Path) -> Path:
    """Where the manifest of a checkpoint lies."""
    return checkpoint.with_name(checkpoint.name + SUFFIX)


def is_sharded(path: Path) -> bool:
    """Whether it is a checkpoint that several processes wrote as a directory."""
    return path.is_dir() and (path / INDEX).is_file()


def read_manifest(checkpoint: Path) -> Manifest | None:
    """The manifest of a checkpoint, ``None`` where there is none that can be read."""
    try:
        content = json.loads(manifest_path(checkpoint).read_bytes())
        if content["complete"] is not True or content["file"] != checkpoint.name:
            return None
        accepted = tuple(Content(**one) for one in content["accepted"])
        return Manifest(accepted, bool(content["superseded"])) if accepted else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def fault(checkpoint: Path, digest_of: Callable[[Path], str] = sha256_of) -> str | None:
    """What is wrong with a checkpoint, in words, or ``None``: its whole content is read.

    Args:
        checkpoint: file or directory.
        digest_of: how to read it; several processes may share the work.
    """
    manifest = read_manifest(checkpoint)
    if manifest is None:
        return "it has no manifest, so the save was cut off"
    if not checkpoint.exists():
        return "it is not there"
    size = bytes_of(checkpoint)
    if size not in [one.bytes for one in manifest.accepted]:
        return f"it has {size:,} bytes instead of {manifest.accepted[0].bytes:,}"
    digest = digest_of(checkpoint)
    if digest not in [one.sha256 for one in manifest.accepted]:
        return (
            f"its content is not what was written (SHA-256 {digest[:12]} instead of "
            f"{manifest.accepted[0].sha256[:12]})"
        )
    return None


def checkpoints(directory: Path) -> list[Path]:
    """Checkpoints of a directory that have a manifest and the right size, the newest first."""
    found = []
    for path in directory.glob("*" + SUFFIX):
        checkpoint = path.with_name(path.name.removesuffix(SUFFIX))
        manifest = read_manifest(checkpoint)
        if manifest is None or not checkpoint.exists():
            continue
        size = bytes_of(checkpoint)
        times = [(one.saved_at, one.step) for one in manifest.accepted if one.bytes == size]
        if times:
            found.append((max(times), checkpoint.name, checkpoint))
    return [checkpoint for _, _, checkpoint in sorted(found, reverse=True)]


def newest_complete(directories: Path | Iterable[Path]) -> Path | None:
    """The checkpoint that was saved last among those that verify; says which were passed over.

    Args:
        directories: one directory, or several that are looked at together.

    Returns:
        Its path, or ``None`` where nothing verifies.
    """
    places = [directories] if isinstance(directories, Path) else list(directories)
    wrong = {path: fault(path) for place in places for path in _unfinished(place)}
    found = [(_saved_at(path), path) for place in places for path in checkpoints(place)]
    chosen = None
    for _, path in sorted(found, reverse=True):
        why = fault(path)
        if why is None:
            chosen = path
            break
        wrong[path] = why
    for path, why in wrong.items():
        if chosen is None or path.stat().st_mtime >= chosen.stat().st_mtime:
            logger.warning("CHECKPOINT SKIPPED: %s: %s", path, why)
    return chosen


def _unfinished(directory: Path) -> list[Path]:
    return [
        path
        for path in directory.glob("*.ckpt")
        if not path.is_symlink() and path not in checkpoints(directory)
    ]


def _saved_at(checkpoint: Path) -> float:
    manifest = read_manifest(checkpoint)
    assert manifest is not None
    return max(one.saved_at for one in manifest.accepted)
