"""The main job from end to end, offline: DPO teaches the shipped model manners.

    python scripts/demo.py [--directory DIR]

Runs the commands that a user would type, in this process: ``validate``, ``fit --config dpo.yaml``,
``validate``, and ``generate`` before and after. Prints what changed, and fails where DPO did not do its job:
held-out pairs it gets right and polite replies must reach 95%, and the model must not lose more than 10
points of the sums it could do.
"""

import argparse
import contextlib
import gzip
import io
import json
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lit_align.__main__ import main as lit_align
from lit_align.shipped import find, tasks

BASE = "lit-align/tiny"
PROMPTS, SUMS = "lit-align/manners-prompts:validation", "lit-align/sums-prompts:validation"


@dataclass(frozen=True)
class Figures:
    """What a model can do on held-out rows; shares between 0 and 1.

    Attributes:
        preferred: pairs whose polite reply is the more probable one.
        polite: sampled replies that are polite by the rule of `lit_align.shipped.tasks`.
        helpful: sampled replies that hold the advice the customer needs.
        sums: sums answered correctly, the most probable token each time.
    """

    preferred: float
    polite: float
    helpful: float
    sums: float

    def faults(self, before: "Figures") -> list[str]:
        """What of the demo's promise does not hold."""
        found = []
        if self.preferred < 0.95:
            found.append(f"pairs preferred {self.preferred:.1%}, promised at least 95%")
        if self.polite < 0.95:
            found.append(f"polite replies {self.polite:.1%}, promised at least 95%")
        if self.sums < before.sums - 0.10:
            found.append(f"sums {before.sums:.1%} before, {self.sums:.1%} after: more than 10 points lost")
        return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; returns 1 where its promise does not hold."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--directory", default=".", help="where runs/ is written")
    parser.add_argument("--samples", type=int, default=200, help="held-out prompts and sums to answer")
    parser.add_argument("overrides", nargs="*", help="further options of fit, after --")
    arguments = parser.parse_args(argv)
    directory = Path(arguments.directory).resolve()
    directory.mkdir(parents=True, exist_ok=True)
    console = Console(width=110 if not sys.stdout.isatty() else None)
    started = time.monotonic()
    with contextlib.chdir(directory):
        before, replies_before = measure(BASE, arguments.samples)
        run_aloud(console, ["fit", "--config", "dpo.yaml", *arguments.overrides])
        run = max(Path("runs/dpo").iterdir(), key=lambda path: int(path.name))
        after, replies_after = measure(str(run / "export"), arguments.samples)
    _report(console, before, after, list(zip(replies_before, replies_after, strict=True))[:3])
    shown = os.path.relpath(directory / run)
    console.print(f"run   {shown}   ({time.monotonic() - started:.0f} s in all)")
    console.print(f"next  lit-align chat {shown}/export", soft_wrap=True)
    faults = after.faults(before)
    for fault in faults:
        console.print(f"[red]the promise does not hold:[/red] {fault}")
    return 1 if faults else 0


def measure(model: str, samples: int) -> tuple[Figures, list[tuple[str, str]]]:
    """Figures of a model, and prompts with its sampled replies."""
    # Without a reference the "rewards" are log-probs, and the accuracy is the share of pairs whose chosen
    # reply is the more probable: the same question for both models.
    table = run_silently(
        ["validate", "--config", "dpo.yaml", "--model.policy", model, "--model.reference", "NoReference"]
    )
    found = re.search(r"val/rewards/accuracies\W+([0-9.]+)", table)
    if found is None:
        raise RuntimeError(f"validate printed no val/rewards/accuracies:\n{table}")
    customers = _answers(model, PROMPTS, samples, [])
    sums = _answers(model, SUMS, samples, ["--greedy", "true"])
    polite = [tasks.is_polite(row["completion"]) for row in customers]
    helpful = [tasks.gives_advice(row["completion"], row["advice"]) for row in customers]
    right = [tasks.is_correct(row["completion"], row["answer"]) for row in sums]
    figures = Figures(float(found[1]), *(sum(each) / len(each) for each in (polite, helpful, right)))
    return figures, [(_text(row["prompt"]), row["completion"].strip()) for row in customers]


def run_silently(command: list[str]) -> str:
    """Run one command of ``lit-align`` and return what it printed; show it only where it fails."""
    with _captured() as printed:
        status = lit_align(command)
    if status:
        raise RuntimeError(f"lit-align {' '.join(command)} failed:\n{printed.getvalue()}")
    return printed.getvalue()


def run_aloud(console: Console, command: list[str]) -> None:
    """Run one command of ``lit-align`` and let it print."""
    console.print(f"[bold]$ lit-align {' '.join(command)}[/bold]", soft_wrap=True)
    status = lit_align(command)
    if status:
        raise RuntimeError(f"lit-align {' '.join(command)} failed")


def _answers(model: str, rows: str, count: int, options: list[str]) -> list[dict[str, Any]]:
    """The first held-out rows of a shipped data set with the model's ``completion`` beside each."""
    source = find(rows)
    assert source is not None
    asked, answered = Path("demo-prompts.jsonl"), Path("demo-answers.jsonl")
    with gzip.open(source, "rt", encoding="utf-8") as file:
        asked.write_text("".join(line for line, _ in zip(file, range(count), strict=False)), encoding="utf-8")
    files = ["--prompts", str(asked), "--output", str(answered)]
    try:
        run_silently(["generate", model, *files, "--batch_size", "100", "--max_new_tokens", "64", *options])
        return [json.loads(line) for line in answered.read_text(encoding="utf-8").splitlines()]
    finally:
        asked.unlink(missing_ok=True)
        answered.unlink(missing_ok=True)


def _report(
    console: Console,
    before: Figures,
    after: Figures,
    samples: Sequence[tuple[tuple[str, str], tuple[str, str]]],
) -> None:
    figures = Table(title="held-out rows of the shipped data", title_justify="left")
    figures.add_column("")
    figures.add_column("before", justify="right")
    figures.add_column("after DPO", justify="right")
    for name, label in (
        ("preferred", "pairs whose polite reply is the more probable"),
        ("polite", "polite replies, sampled at temperature 1"),
        ("helpful", "replies with the right advice"),
        ("sums", "sums right, greedy: not trained, not to be broken"),
    ):
        figures.add_row(label, f"{getattr(before, name):.1%}", f"{getattr(after, name):.1%}")
    console.print(figures)
    replies = Table(title="sampled replies", title_justify="left", show_lines=True)
    for column in ("customer", "before", "after DPO"):
        replies.add_column(column, ratio=1)
    for (prompt, old), (_, new) in samples:
        replies.add_row(prompt, old, new)
    console.print(replies)


def _text(prompt: str | list[dict[str, str]]) -> str:
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]


@contextlib.contextmanager
def _captured() -> Iterator[io.StringIO]:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        yield printed


if __name__ == "__main__":
    sys.exit(main())
