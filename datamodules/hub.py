"""Data sets of the Hub, and those that the datasets library saved to disk."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lit_align.datamodules.bad_rows import DataError, nearest
from lit_align.datamodules.naming import nearest_files


def load_from_hub(name: str, split: str | None, streaming: bool) -> Iterable[Any]:
    """A data set by name.

    Args:
        name: ``name``, ``org/name``, or ``org/name/configuration``.
        split: its split; ``train`` where it is ``None``.
        streaming: read rows over the network as they are used.

    Raises:
        DataError: it is not there, or the Hub cannot be reached.
    """
    import datasets

    parts = name.split("/")
    repository, configuration = ("/".join(parts[:2]), parts[2]) if len(parts) == 3 else (name, None)
    try:
        return datasets.load_dataset(repository, configuration, split=split or "train", streaming=streaming)
    # Whatever fails in there (no network, offline mode, no such name, no such split, a gated
    # repository, a broken script) has its own type, few with a common parent.
    except Exception as error:
        close = nearest_files(Path(name))
        hint = f" Files here with a name like it: {', '.join(close)}." if close else ""
        raise DataError(
            f"{name!r} is no file or directory here, and the Hub did not give it "
            f"({type(error).__name__}: {_first_line(error)}).{hint} "
            "Offline, only files and data sets in the local Hub cache can be used."
        ) from error


def is_saved(folder: Path) -> bool:
    """Whether ``Dataset.save_to_disk`` or ``DatasetDict.save_to_disk`` wrote this directory."""
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()


def load_saved(folder: Path, split: str | None) -> Iterable[Any]:
    """A data set from a directory that the datasets library wrote.

    Raises:
        DataError: it has no such split.
    """
    import datasets

    saved = datasets.load_from_disk(str(folder))
    if not isinstance(saved, datasets.DatasetDict):
        if split is not None:
            raise DataError(f"{folder}: a single data set without splits, so there is no {split!r}")
        return saved
    wanted = split or "train"
    if wanted not in saved:
        raise DataError(f"{folder}: no split {wanted!r}{nearest(wanted, saved)}; it has {', '.join(saved)}")
    return saved[wanted]


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else "no message"
