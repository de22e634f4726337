"""Checkpoints that survive whatever happens while they are written."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, cast

import torch
from lightning.fabric.plugins.io import CheckpointIO

from lit_align.runtime.atomic_file import HashingWriter, remove, remove_litter, replacing
from lit_align.runtime.digest import sha256_of
from lit_align.runtime.manifest import (
    SUFFIX,
    CheckpointError,
    Content,
    Manifest,
    checkpoints,
    fault,
    is_sharded,
    manifest_path,
    newest_complete,
    read_manifest,
)
from lit_align.runtime.plain_data import load_plain
from lit_align.runtime.sharded_checkpoint import load_sharded, set_aside

__all__ = ["AtomicCheckpointIO", "CheckpointError", "intact"]

logger = logging.getLogger(__name__)


class AtomicCheckpointIO(CheckpointIO):
    """Save whole or not at all, verify what is loaded, and never remove the last good file.

    A checkpoint is written beside its place, to the disk, and renamed; then a manifest with its SHA-256
    is written the same way. At every moment, a crash of the machine included, the newest complete
    checkpoint can be loaded. Loading verifies the content and takes the newest that is right when the
    one asked for is not. Files are read as data (``weights_only``): nothing in them is run.

    Give it to any trainer: ``Trainer(plugins=[AtomicCheckpointIO()])``.

    Args:
        keep: complete checkpoints that stay in a directory even when a callback removes them.
    """

    def __init__(self, keep: int = 2) -> None:
        if keep < 1:
            raise ValueError(f"keep is {keep}; at least one checkpoint must stay")
        self.keep = keep

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint and its manifest.

        Raises:
            DiskFull: no room; the file of that name is as it was before.
        """
        if storage_options is not None:
            raise TypeError("AtomicCheckpointIO has no storage options")
        place = _local(path)
        remove_litter(place.parent)
        old = read_manifest(place) if place.is_file() else None
        step, epoch = int(checkpoint.get("global_step", 0)), int(checkpoint.get("epoch", 0))

        def accept_both(file: HashingWriter) -> None:
            if old is not None:
                Manifest((Content.now(file.sha256, file.bytes, step, epoch), *old.accepted)).write(place)

        # One that several processes wrote is a directory, which no file can replace.
        aside = set_aside(place) if place.is_dir() else None
        with replacing(place, before=accept_both) as file:
            torch.save(checkpoint, cast("IO[bytes]", file))
        Manifest((Content.now(file.sha256, file.bytes, step, epoch),)).write(place)
        if aside is not None:
            remove(aside)
            manifest_path(aside).unlink(missing_ok=True)
        self.remove_superseded(place.parent)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint, or the newest intact one beside it when it is damaged.

        Args:
            path: the checkpoint.
            map_location: where its tensors go.
            weights_only: always taken to be true.

        Raises:
            FileNotFoundError: there is nothing at the path.
            CheckpointError: it and its neighbours are damaged, or it holds more than data.
        """
        place = _local(path)
        if not place.exists() and read_manifest(place) is None:
            raise FileNotFoundError(f"no checkpoint {place}")
        place = intact(place.resolve())
        if is_sharded(place):
            return load_sharded(place)
        return load_plain(place, map_location)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint and its manifest, now or as soon as enough others are complete."""
        place = _local(path)
        manifest = read_manifest(place)
        if manifest is None or place.is_symlink():
            remove(place)
            return
        manifest.supersede().write(place)
        self.remove_superseded(place.parent)

    def remove_superseded(self, directory: Path) -> None:
        """Remove what may go, the oldest first, as long as enough complete ones stay."""
        found = checkpoints(directory)
        spare = len(found) - self.keep
        for place in reversed(found):
            manifest = read_manifest(place)
            if spare <= 0:
                break
            if manifest is not None and manifest.superseded:
                remove(place)
                manifest_path(place).unlink(missing_ok=True)
                spare -= 1


def intact(
    place: Path,
    digest_of: Callable[[Path], str] = sha256_of,
    ask: Callable[[Callable[[], Path | None]], Path | None] = lambda look: look(),
) -> Path:
    """A checkpoint, or the newest intact one beside it when it is damaged.

    Args:
        place: file or directory.
        digest_of: how its content is read.
        ask: runs the look at its neighbours; several processes must come to one answer.

    Raises:
        CheckpointError: all are damaged.
    """
    why = fault(place, digest_of)
    if why is None:
        return place
    if read_manifest(place) is None and not any(place.parent.glob("*" + SUFFIX)):
        logger.warning("%s was not written by AtomicCheckpointIO and is loaded unverified", place)
        return place
    other = ask(lambda: newest_complete(place.parent))
    if other is None:
        raise CheckpointError(f"{place} cannot be used: {why}; and no other in its directory is intact")
    logger.warning("CHECKPOINT SKIPPED: %s: %s. Loading %s instead", place, why, other)
    return other


def _local(path: str | Path) -> Path:
    if "://" in str(path):
        raise ValueError(
            f"{path} is not on a local or mounted file system, where a file can be renamed atomically; "
            "save locally and copy, or use Lightning's own checkpoint plugin"
        )
    return Path(path).expanduser()
