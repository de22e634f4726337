"""Measure what README.md and docs/ say about the shipped configurations, and write it into them.

    python scripts/measure_docs.py [sft reward dpo ppo ...] [--directory build/measured]

Runs each configuration as it is, validates before and after, and replaces what stands between
``<!-- measured: NAME -->`` and ``<!-- end -->``. With ``dpo`` it also measures what `scripts/demo.py`
measures, and draws docs/images/dpo.png. About ten minutes on 2 cores for all; run it when a configuration or
the shipped model changed.
"""

import argparse
import contextlib
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from demo import BASE, Figures, measure, run_silently
from plot_run import main as plot

ROOT = Path(__file__).parents[1]
SAMPLED = ("reward", "objective/kl", "completions/mean_length", "completions/clipped_ratio")
#: What the table of each configuration shows, out of the metrics of ``validate``.
METRICS = {
    "sft": ("loss", "mean_token_accuracy", "entropy"),
    "reward": ("loss", "accuracy", "margin", "mean_reward"),
    "dpo": (
        "loss",
        "rewards/accuracies",
        "rewards/margins",
        "rewards/chosen",
        "rewards/rejected",
        "logps/chosen",
        "logps/rejected",
    ),
    "ppo": SAMPLED,
    "a2c": SAMPLED,
    "grpo": ("reward", "completions/mean_length", "completions/clipped_ratio"),
    "rloo": SAMPLED,
    "reinforce_pp": SAMPLED,
}
SAMPLES = 400
LABELS = {
    "preferred": "pairs whose polite reply is the more probable",
    "polite": "polite replies, sampled at temperature 1",
    "helpful": "replies with the right advice",
    "sums": "sums right, greedy: a skill that DPO does not train",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the named configurations, all by default."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help=f"out of {', '.join(METRICS)}; all by default")
    parser.add_argument("--directory", type=Path, default=ROOT / "build" / "measured", help="for the runs")
    arguments = parser.parse_args(argv)
    arguments.directory.mkdir(parents=True, exist_ok=True)
    with contextlib.chdir(arguments.directory):
        for name in arguments.names or METRICS:
            run, text = measure_config(name)
            write(ROOT / f"docs/algorithms/{name}.md", name, text)
            if name == "dpo":
                write(ROOT / "README.md", "demo", measure_demo(run))
                picture = ["--output", str(ROOT / "docs/images/dpo.png"), "--title", command("dpo")]
                if plot([str(run), *picture]):
                    return 1
    return 0


def command(name: str) -> str:
    """The command that trains a configuration."""
    return f"lit-align fit --config {name}.yaml"


def measure_config(name: str) -> tuple[Path, str]:
    """Train a configuration; returns its run and the text that says what came of it."""
    before = validation(["validate", "--config", f"{name}.yaml"])
    wall, cpu = time.monotonic(), time.process_time()
    run_silently(command(name).split()[1:])
    wall, cpu = time.monotonic() - wall, time.process_time() - cpu
    run = max(Path("runs", name).iterdir(), key=lambda path: int(path.name))
    checkpoint = ["--ckpt_path", str(run / "checkpoints" / "last.ckpt")]
    after = validation(["validate", "--config", f"{name}.yaml", *checkpoint])
    rows = [f"| `val/{key}` | {before[key]} | {after[key]} |" for key in METRICS[name]]
    text = [
        f"`{command(name)}` (seed 0, {cpu:.0f} CPU seconds), on {held_out(name)};",
        f"before by `lit-align validate --config {name}.yaml`, after by the same with `--ckpt_path last`:",
        "",
        "| metric | before | after |",
        "| --- | ---: | ---: |",
        *rows,
    ]
    print(f"{name}: {wall:.0f} s, {cpu:.0f} CPU s")
    return run, "\n".join(text)


def held_out(name: str) -> str:
    """What a configuration is validated on."""
    if "reward" in METRICS[name]:
        return "one sampled answer to each of the 400 held-out prompts"
    return "the 400 held-out rows"


def validation(arguments: list[str]) -> dict[str, str]:
    """What ``validate`` prints, metric by metric."""
    printed = run_silently(arguments)
    return dict(re.findall(r"val/([\w/]+)\W+?(-?[0-9.]+)", printed))


def measure_demo(run: Path) -> str:
    """What the demo measures, on more rows."""
    (before, _), (after, _) = measure(BASE, SAMPLES), measure(str(run / "export"), SAMPLES)
    rows = [
        f"| {LABELS[item.name]} | {getattr(before, item.name):.1%} | {getattr(after, item.name):.1%} |"
        for item in fields(Figures)
    ]
    head = [f"What this run did, on {SAMPLES} held-out rows each (`python scripts/measure_docs.py dpo`):", ""]
    return "\n".join([*head, "| | before | after DPO |", "| --- | ---: | ---: |", *rows])


def write(page: Path, name: str, text: str) -> None:
    """Put the text between the marks of the page."""
    content = page.read_text(encoding="utf-8")
    pattern = re.compile(rf"(?<=<!-- measured: {name} -->\n).*?(?=<!-- end -->)", re.DOTALL)
    if not pattern.search(content):
        raise ValueError(f"{page} has no '<!-- measured: {name} -->' ... '<!-- end -->'")
    page.write_text(pattern.sub(lambda _: f"\n{text}\n\n", content), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
