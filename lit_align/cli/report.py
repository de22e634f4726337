"""What a command prints when it is done."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

CONFIG_FILE = "config.yaml"
EXPORT_FOLDER = "export"


def print_metrics(stage: str, results: Sequence[Mapping[str, float]]) -> None:
    """A table of metrics, one column per data loader.

    Args:
        stage: ``validate`` or ``test``.
        results: what the trainer returned, one mapping per data loader.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    names = sorted({name for one in results for name in one})
    table = Table(title=stage)
    table.add_column("metric")
    for index in range(len(results)):
        table.add_column("value" if len(results) == 1 else f"loader {index}", justify="right")
    for name in names:
        table.add_row(Text(name), *(f"{one[name]:.4f}" if name in one else "" for one in results))
    Console().print(table)


def print_end_of_fit(directory: Path, sources: Iterable[tuple[str, Any]]) -> None:
    """Where the run is, and the command that comes next."""
    directory = _short(directory)
    export = directory / EXPORT_FOLDER
    print(f"\nrun   {directory}")
    if not export.is_dir():
        return
    print(f"model {export}")
    if _is_classifier(export):
        configs = " ".join(f"--config {name}" for name, _ in sources if not name.startswith("--"))
        print(f"next  lit-align predict {configs} --ckpt_path last")
    else:
        print(f"next  lit-align chat {export}")


def _short(path: Path) -> Path:
    """The path relative to here, where it lies below."""
    absolute = path.absolute()
    return absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else absolute


def _is_classifier(export: Path) -> bool:
    """Whether the exported model gives scores instead of text."""
    for name in ("adapter_config.json", "config.json"):
        path = export / name
        if path.is_file():
            content = json.loads(path.read_text(encoding="utf-8"))
            named = [*(content.get("architectures") or []), str(content.get("task_type"))]
            return any("SequenceClassification" in one or one == "SEQ_CLS" for one in named)
    return False
