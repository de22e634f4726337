"""Does it learn, with every seed? The shipped on-policy configurations, run whole, measured on unseen rows.

    python benchmarks/learning.py --seeds 10 --only ppo,grpo

``ppo`` trains a reward model first (reward.yaml) and then PPO against it, so that the rule by which
politeness is measured is never seen in training. The others are their configuration as it is. Shares are of
400 held-out prompts: polite replies are sampled at temperature 1, sums are answered greedily. Prints one line
per run, and a table in Markdown at the end.
"""

import argparse
import gzip
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from lit_align.cli.train import main as train
from lit_align.rollouts.generate import generate_text
from lit_align.shipped import find, tasks

BASE = "lit-align/tiny"
POLITE = ("ppo", "a2c", "reinforce_pp")
SUMS = ("grpo", "rloo")
#: A reward model has a scale of its own: its scores are brought to a mean of 0 and a deviation of 1.
REWARD_MODEL = ("--model.scores.scaling=normalise", "--model.kl.coefficient=0.1")
#: What a run has to reach: a share, and for sums a gain over the base.
POLITE_SHARE, SUMS_GAIN = 0.9, 0.2
#: How far from the reference a polite policy may be, in nats per completion (of about 26 tokens).
LARGEST_KL = 10.0


def rows(name: str) -> list[dict[str, Any]]:
    path = find(name)
    assert path is not None
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def polite_share(model: Any, tokenizer: Any) -> float:
    asked = rows("lit-align/manners-prompts:validation")
    said = generate_text(
        model, tokenizer, [row["prompt"] for row in asked], max_new_tokens=48, batch_size=100
    )
    return sum(map(tasks.is_polite, said)) / len(said)


def right_share(model: Any, tokenizer: Any) -> float:
    asked = rows("lit-align/stories-prompts:validation")
    prompts = [row["prompt"] for row in asked]
    said = generate_text(model, tokenizer, prompts, max_new_tokens=24, temperature=0, batch_size=100)
    return sum(map(tasks.is_correct, said, (row["answer"] for row in asked))) / len(said)


def share_of(path: str, measure: Callable[[Any, Any], float]) -> float:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place = str(find(path) or path)
    model = AutoModelForCausalLM.from_pretrained(place).eval()
    return measure(model, AutoTokenizer.from_pretrained(place))


def run(name: str, seed: int, extra: Sequence[str]) -> tuple[str, float, float]:
    """One run: where its model is, its last KL per completion on held-out prompts, and its seconds."""
    started = time.monotonic()
    options = [f"--seed_everything={seed}", f"--data.seed={seed}", "--trainer.enable_model_summary=false"]
    cli = train(["fit", "--config", f"{name}.yaml", *options, *extra])
    assert cli.run is not None
    kl = cli.trainer.callback_metrics.get("val/objective/kl", torch.tensor(float("nan")))
    return str(cli.run.directory / "export"), float(kl), time.monotonic() - started


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default=",".join(POLITE + SUMS))
    args = parser.parse_args()
    os.chdir(tempfile.mkdtemp())
    lines = []
    for name in args.only.split(","):
        polite = name in POLITE
        measure = polite_share if polite else right_share
        extra: list[str] = []
        if name == "ppo":
            train(["fit", "--config", "reward.yaml", "--trainer.enable_model_summary=false"])
            extra = [f"--model.rewards={Path.cwd()}/runs/reward/1/export", *REWARD_MODEL]
        before = share_of(BASE, measure)
        goal = POLITE_SHARE if polite else before + SUMS_GAIN
        found = []
        for seed in range(args.seeds):
            path, kl, seconds = run(name, seed, extra)
            share = share_of(path, measure)
            found.append((share, kl, seconds))
            print(
                f"{name} seed {seed}: {before:.1%} -> {share:.1%}, KL {kl:.2f}, {seconds:.0f} s", flush=True
            )
        shares, kls, times = zip(*found, strict=True)
        reached = sum(
            share >= goal and not (polite and kl > LARGEST_KL) for share, kl in zip(shares, kls, strict=True)
        )
        lines.append(
            f"| {name} | {'polite' if polite else 'sums right'} | {before:.1%} | {min(shares):.1%} | "
            f"{statistics.median(shares):.1%} | {max(kls):.1f} | {statistics.median(times):.0f} s | "
            f"{reached}/{args.seeds} |"
        )
    print("\n| config | share | before | worst after | median after | largest KL | median time | reached |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
