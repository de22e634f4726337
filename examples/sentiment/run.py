"""The example that made RLHF in the small known: a language model learns to continue reviews positively.

    python examples/sentiment/run.py --data reviews.jsonl.gz

A language model is trained on film reviews, a BERT on their labels, and PPO on what the BERT says of the
model's continuations, with the KL to the start held down. Prints the sentiment before and after and ten
samples, and draws the run. A few minutes on two cores; needs no network.
"""

import argparse
import csv
import json
import logging
import os
import warnings
from pathlib import Path
from typing import Any

import classifier
import language_model
import reviews

from lit_align.algorithms.collection import evaluate
from lit_align.cli.train import main as lit_align

HERE = Path(__file__).parent


def prepare(data: Path, work: Path, epochs: int) -> dict[str, float]:
    """Train the language model and the judge, unless they lie in ``work`` already."""
    rows = reviews.read(data)
    train, held_out = reviews.split(rows)
    for name, some in (("train", train), ("held_out", held_out)):
        (work / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    if (work / "accuracy.json").is_file():
        found: dict[str, float] = json.loads((work / "accuracy.json").read_text())
        return found
    tokenizer = reviews.train_tokenizer([row["text"] for row in train])
    accuracy = classifier.train(train, held_out, tokenizer, work / "classifier", epochs)
    language_model.train([row["text"] for row in train], tokenizer, work / "language_model", epochs)
    words = classifier.WordCounts(train)
    right = [words.positive(row["text"]) == bool(row["label"]) for row in held_out]
    figures = {"classifier": accuracy, "words": sum(right) / len(right)}
    (work / "accuracy.json").write_text(json.dumps(figures))
    return figures


def ppo(work: Path, steps: int) -> Any:
    """The trainer, module and data of ``ppo.yaml``, with the small models in the place of the Hub's."""
    rewards = [
        {
            "classifier": str(work / "classifier"),
            "name": "sentiment",
            "options": {"label": "POSITIVE", "output": "log_odds"},
        }
    ]
    small: dict[str, Any] = {
        "model.policy": work / "language_model",
        "model.rewards": json.dumps(rewards),
        "model.lr": 5e-4,
        "data.train": work / "train.jsonl",
        "data.val": work / "held_out.jsonl",
        "data.eval_batch_size": 256,
        # Asked for batches before the trainer knows the module.
        "data.tokenizer": work / "language_model",
        "trainer.max_steps": steps,
        "trainer.limit_val_batches": 0,
        "trainer.enable_model_summary": "false",
        "trainer.default_root_dir": work,
        "trainer.accelerator": "cpu",
    }
    return lit_align(
        ["--config", str(HERE / "ppo.yaml"), *(f"--{name}={value}" for name, value in small.items())],
        run=False,
    )


def judged(cli: Any, words: classifier.WordCounts) -> dict[str, Any]:
    """Continuations of held-out prompts, and what both judges say of them."""
    module, data = cli.model, cli.datamodule
    data.setup("validate")
    module.configure_model()
    batch = next(iter(data.val_dataloader()))
    forest, rewarded, metrics = evaluate(module, batch)
    sequences = [prompt + completion for prompt, completion, _ in forest.sequences()]
    texts = module.tokenizer.batch_decode(sequences, skip_special_tokens=True)
    rewards = rewarded.table[:, 0]
    kl = metrics["objective/kl"]
    return {
        "texts": texts,
        "rewards": rewards.tolist(),
        "positive": float(rewards.sigmoid().mean()),
        "by_words": sum(map(words.positive, texts)) / len(texts),
        "kl": float(kl.value / kl.weight),
    }


def report(
    before: dict[str, Any], after: dict[str, Any], figures: dict[str, float], samples: int = 10
) -> None:
    """Print figures and samples."""
    print(
        f"\njudges on held-out reviews: BERT {figures['classifier']:.2f}, "
        f"word counts {figures['words']:.2f} right"
    )
    print("                                          before   after")
    print(f"BERT, mean probability of positive          {before['positive']:.2f}    {after['positive']:.2f}")
    print(f"word counts (no reward), share positive     {before['by_words']:.2f}    {after['by_words']:.2f}")
    print(f"KL to the start, nats per continuation      {before['kl']:.2f}    {after['kl']:.2f}\n")
    for i in range(samples):
        print(f"{before['rewards'][i]:+.1f} {before['texts'][i].strip()}")
        print(f"{after['rewards'][i]:+.1f} {after['texts'][i].strip()}\n")


def plot(metrics: Path, target: Path) -> None:
    """Reward and KL over the steps, from the run's ``metrics.csv``."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with open(metrics) as file:
        rows = [row for row in csv.DictReader(file) if row.get("train/rewards/sentiment/mean")]
    figure, axes = pyplot.subplots(1, 2, figsize=(8, 3))
    names = {"train/rewards/sentiment/mean": "log odds of positive", "train/objective/kl": "KL, nats"}
    for axis, (name, label) in zip(axes, names.items(), strict=True):
        axis.plot([int(row["step"]) for row in rows], [float(row[name]) for row in rows])
        axis.set(xlabel="optimiser step", title=label)
    figure.tight_layout()
    figure.savefig(target)
    print(f"plot {target}")


def main() -> None:
    """Run all of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="JSONL file of text and label")
    parser.add_argument("--work", type=Path, default=Path("runs/sentiment"), help="where everything goes")
    parser.add_argument("--epochs", type=int, default=4, help="of the language model and the classifier")
    parser.add_argument("--steps", type=int, default=240, help="optimiser steps of PPO")
    arguments = parser.parse_args()
    if arguments.data is None or not arguments.data.is_file():
        raise SystemExit(reviews.HOW_TO_GET_DATA)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    work = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    figures = prepare(arguments.data, work, arguments.epochs)
    words = classifier.WordCounts(reviews.read(work / "train.jsonl"))
    cli = ppo(work, arguments.steps)
    before = judged(cli, words)
    cli.trainer.fit(cli.model, cli.datamodule)
    after = judged(cli, words)
    report(before, after, figures)
    plot(Path(cli.trainer.default_root_dir) / "metrics.csv", work / "sentiment.png")


if __name__ == "__main__":
    main()
