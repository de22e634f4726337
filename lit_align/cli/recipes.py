"""The configurations that the package carries: listing them, and finding one by its name."""

import sys
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from lit_align.cli.errors import CommandLineError, nearest


def shipped() -> dict[str, Path]:
    """Name below ``configs`` (``dpo.yaml``, ``recipes/x.yaml``) to file."""
    root = Path(str(files("lit_align.configs")))
    return {path.relative_to(root).as_posix(): path for path in sorted(root.rglob("*.yaml"))}


def find_config(name: str) -> Path:
    """The file that ``--config NAME`` means: one on disk, else one that the package carries.

    Raises:
        CommandLineError: there is neither.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    known = shipped()
    for candidate in (name, f"{name}.yaml"):
        if candidate in known:
            return known[candidate]
    if path.is_dir():
        raise CommandLineError(f"--config {name} is a directory", "name the YAML file in it")
    guess = nearest(name, known) or nearest(path.name, known)
    listed = f"it carries {', '.join(known)}"
    raise CommandLineError(
        f"--config {name}: there is no such file here ({Path.cwd()}), and the package carries none",
        f"did you mean {guess}? {listed}" if guess else listed,
    )


def summary(path: Path) -> str:
    """The first comment of a configuration: its command and what it needs."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            return line.lstrip("# ").rstrip()
    return ""


def main(argv: Sequence[str]) -> None:
    """``lit-align recipes``: every shipped configuration with its first comment."""
    if any(arg in ("-h", "--help") for arg in argv):
        print("usage: lit-align recipes\n\nList the configurations that --config finds by name.")
        return
    if argv:
        raise CommandLineError(f"recipes takes no arguments, but got {' '.join(argv)}", "lit-align recipes")
    known = shipped()
    width = max(map(len, known), default=0)
    for name, path in known.items():
        sys.stdout.write(f"{name:<{width}}  {summary(path)}\n")
