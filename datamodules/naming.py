"""Whether a string is a path or a name on the Hub, and what a mistyped path could have been."""

import re
from difflib import get_close_matches
from pathlib import Path

from lit_align.datamodules.readers import SUFFIXES, data_suffix

#: ``name``, ``org/name`` or ``org/name/configuration``, with an optional ``:split``.
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+){0,2}(:[\w.\[\]:%+-]+)?")
#: At least two characters stand before the colon: one is a drive, as in ``C:\\data``.
_SPLIT = re.compile(r"(..+?):([A-Za-z_][^/\\]*)")


def split_name(name: str) -> tuple[str, str | None]:
    """Cut the split off a name.

    >>> split_name("org/pairs:test")
    ('org/pairs', 'test')
    >>> split_name("pairs")
    ('pairs', None)
    """
    match = _SPLIT.fullmatch(name)
    return (match[1], match[2]) if match else (name, None)


def looks_like_path(name: str) -> bool:
    """Whether a string that names nothing on disk was meant as a path.

    >>> looks_like_path("pairs.jsonl"), looks_like_path("./pairs"), looks_like_path("org/pairs")
    (True, True, False)
    """
    base, _ = split_name(name)
    return (
        base.startswith((".", "/", "~"))
        or "\\" in base
        or base.lower().endswith(".gz")
        or data_suffix(Path(base)) in SUFFIXES
        or not _HUB_NAME.fullmatch(name)
        # The first folder exists: nobody's organisation is called like a folder here by chance.
        or ("/" in base and Path(base).parts[0] != base and Path(base).parent.is_dir())
    )


def nearest_files(path: Path, count: int = 3) -> list[str]:
    """Data files and folders whose names are like the missing one's, nearest first."""
    folder = path.parent if path.parent.is_dir() else Path()
    visible = [p for p in sorted(folder.iterdir()) if not p.name.startswith(".")]
    found = [p for p in visible if p.is_dir() or data_suffix(p) in SUFFIXES]
    # Suffixes apart: by them all data files would be alike.
    close = get_close_matches(_stem(path), {_stem(p) for p in found}, n=count, cutoff=0.6)
    return [str(p) for stem in close for p in found if _stem(p) == stem][:count]


def _stem(path: Path) -> str:
    return path.name.partition(".")[0]


def missing_path(path: Path) -> str:
    """The message for a path that does not exist."""
    if not path.parent.is_dir():
        return f"{path}: no such file, and no such directory {path.parent} (from {Path.cwd()})"
    close = nearest_files(path)
    hint = (
        f"; did you mean {' or '.join(close)}?" if close else f"; nothing in {path.parent} has a name like it"
    )
    return f"{path}: no such file or directory (from {Path.cwd()}){hint}"
