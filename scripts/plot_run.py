"""A picture of a run, from its metrics.csv: loss, pairs won, rewards.

    python scripts/plot_run.py runs/dpo/1 [--output docs/images/dpo.png]

Needs matplotlib (``pip install -e '.[dev]'``). Dots are validation, lines are training.
"""

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

#: Panels of a DPO run: title, y label, and the metrics of each with their labels.
PANELS = (
    ("loss", "nats per pair", (("loss", "loss"),)),
    ("pairs won", "share of pairs", (("rewards/accuracies", "chosen reward > rejected"),)),
    (
        "implicit rewards",
        "β · log(policy / reference)",
        (("rewards/chosen", "chosen"), ("rewards/margins", "margin"), ("rewards/rejected", "rejected")),
    ),
)
COLOURS = {"rewards/chosen": "#2a7f3f", "rewards/rejected": "#b03a2e", "rewards/margins": "#1f4e79"}


def main(argv: Sequence[str] | None = None) -> int:
    """Draw the picture; returns 1 where the run has no metrics to draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="directory of a DPO run (runs/dpo/1)")
    parser.add_argument("--output", type=Path, help="picture; metrics.png in the run by default")
    parser.add_argument("--title", default="", help="above the picture; the run's directory by default")
    arguments = parser.parse_args(argv)
    table = arguments.run / "metrics.csv"
    if not table.is_file():
        print(f"{table} does not exist; give the directory of a run, such as runs/dpo/1", file=sys.stderr)
        return 1
    curves = read(table)
    missing = [name for _, _, lines in PANELS for name, _ in lines if f"train/{name}" not in curves]
    if missing:
        print(f"{table} has no train/{missing[0]}; it has {', '.join(sorted(curves))}", file=sys.stderr)
        return 1
    output = arguments.output or arguments.run / "metrics.png"
    draw(curves, arguments.title or str(arguments.run), output)
    print(f"{output} ({output.stat().st_size / 1000:.0f} kB)")
    return 0


def read(path: Path) -> dict[str, tuple[list[int], list[float]]]:
    """Each metric of a CSVLogger's file as steps (counted from 1) and values, empty cells left out."""
    curves: dict[str, tuple[list[int], list[float]]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                if value and name not in ("epoch", "step"):
                    steps, values = curves.setdefault(name, ([], []))
                    steps.append(int(row["step"]) + 1)
                    values.append(float(value))
    return curves


def draw(curves: dict[str, tuple[list[int], list[float]]], title: str, output: Path) -> None:
    """Three panels side by side, written as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(1, len(PANELS), figsize=(10, 2.9), layout="constrained")
    for axis, (name, unit, lines) in zip(axes, PANELS, strict=True):
        _panel(axis, name, unit, lines, curves)
    figure.suptitle(title, fontsize=9, x=0.01, ha="left", family="monospace")
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=110)
    plt.close(figure)


def _panel(axis: Any, name: str, unit: str, lines: Sequence[tuple[str, str]], curves: dict[str, Any]) -> None:
    for metric, label in lines:
        colour = COLOURS.get(metric, "#1f4e79")
        axis.plot(*curves[f"train/{metric}"], color=colour, linewidth=1.5, label=label)
        if f"val/{metric}" in curves:
            axis.plot(*curves[f"val/{metric}"], "o", color=colour, markersize=5)
    if "share" in unit:
        axis.set_ylim(0, 1.04)
    else:
        axis.axhline(0, color="0.8", linewidth=0.8, zorder=0)
    axis.set_title(name, fontsize=10)
    axis.set_xlabel("optimiser step")
    axis.set_ylabel(unit)
    axis.grid(axis="y", color="0.92")
    if len(lines) > 1:
        axis.legend(frameon=False, fontsize=8)
    elif f"val/{lines[0][0]}" in curves:
        axis.plot([], [], color="0.3", label="train")
        axis.plot([], [], "o", color="0.3", label="validation")
        axis.legend(handles=axis.get_lines()[-2:], frameon=False, fontsize=8)


if __name__ == "__main__":
    sys.exit(main())
