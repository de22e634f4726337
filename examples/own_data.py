"""Data of your own: whatever can become a list of rows.

    python examples/own_data.py

Forum answers with votes become preference pairs with a margin, and a reward model learns from them.
"""

import math
from collections.abc import Iterator
from itertools import combinations
from typing import Any

import lightning as L

from lit_align import RewardModel
from lit_align.datamodules import PreferenceDataModule

THREADS = [
    {
        "question": f"My {thing} does not work. What can I do?",
        "answers": {
            f"Sorry to hear that. Please restart the {thing}, and tell us if that helps.": 40 + i,
            f"Restart the {thing}.": 12,
            "Read the manual.": 2,
            "Whatever.": 0,
        },
    }
    for i, thing in enumerate(("lamp", "kettle", "printer", "camera", "heater", "router", "scale", "clock"))
]


def pairs(threads: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Every two answers of a thread, the one with more votes as chosen; the margin is the ratio's log."""
    for thread in threads:
        ranked = sorted(thread["answers"].items(), key=lambda item: -item[1])
        for (better, more), (worse, fewer) in combinations(ranked, 2):
            yield {
                "prompt": [{"role": "user", "content": thread["question"]}],
                "chosen": [{"role": "assistant", "content": better}],
                "rejected": [{"role": "assistant", "content": worse}],
                "margin": math.log((more + 1) / (fewer + 1)),
            }


def main(steps: int = 20) -> dict[str, float]:
    """Train on them, a quarter of the prompts held out; returns the validation metrics."""
    L.seed_everything(0)
    data = PreferenceDataModule(train=list(pairs(THREADS)), val_fraction=0.25, batch_size=8)
    module = RewardModel("lit-align/tiny", center_rewards_coefficient=0.01, lr=3e-4)
    trainer = L.Trainer(max_steps=steps, log_every_n_steps=5, logger=False, enable_checkpointing=False)
    trainer.fit(module, data)
    (metrics,) = trainer.validate(module, data, verbose=False)
    return dict(metrics)


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name:18} {value:8.3f}")
