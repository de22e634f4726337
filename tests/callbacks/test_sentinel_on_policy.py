"""Algorithms that sample: healthy runs raise no message, and faults planted in their parts are told."""

import importlib
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import yaml

import lit_align
from lit_align.algorithms.grpo import GRPO
from lit_align.callbacks import KLTracker, Sentinel, Throughput
from lit_align.datamodules import PromptDataModule
from lit_align.rollouts.native import NativeGenerator

CONFIGS = Path(lit_align.__file__).parent / "configs"


def _built(described: dict[str, Any]) -> Any:
    module, _, name = described["class_path"].rpartition(".")
    return getattr(importlib.import_module(module), name)(**described["init_args"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ppo", "a2c", "grpo", "rloo", "reinforce_pp"])
def test_no_message(name: str, make_trainer: Any) -> None:
    config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    L.seed_everything(0)
    clip = config["trainer"]["gradient_clip_val"]
    sentinel = Sentinel(every_n_steps=1, prompts=["My lamp", "My desk"], max_new_tokens=16)
    trainer = make_trainer(
        sentinel,
        KLTracker(every_n_steps=5),
        Throughput(5),
        max_steps=24,
        gradient_clip_val=clip,
        limit_val_batches=1,
        val_check_interval=8,
        check_val_every_n_epoch=None,
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(_built(config["model"]), _built(config["data"]))
    assert [str(w.message) for w in caught if str(w.message).startswith("Sentinel")] == []
    # It had numbers to judge.
    logged = {str(key) for key in trainer.callback_metrics}
    seen = {"train/reward", "val/reward", "train/ratio/first_mean", "train/completions/mean_length"}
    assert seen | {"train/kl/full", "train/throughput/tokens_per_second"} <= logged
    assert float(trainer.callback_metrics["train/throughput/tokens"]) > 0


class Skewed(NativeGenerator):
    """Says that what it sampled was a tenth of a nat likelier than it was, as other weights would."""

    def generate(self, *arguments: Any, **options: Any) -> Any:
        forest = super().generate(*arguments, **options)
        old = forest.token_columns["old_logps"]
        return replace(forest, token_columns={**forest.token_columns, "old_logps": old + 0.1})


def _lengths(completions: list[str], **rest: Any) -> list[float]:
    return [float(len(text)) for text in completions]


def _constant(completions: list[str], **rest: Any) -> list[float]:
    return [0.5] * len(completions)


@pytest.mark.parametrize(
    ("name", "step", "parts"),
    [
        # exp(-0.1) = 0.905 instead of 1.
        ("ratio_at_start", 1, {"generator": Skewed(), "rewards": _lengths}),
        ("groups_without_spread", 3, {"rewards": _constant}),
    ],
)
def test_planted_faults(name: str, step: int, parts: dict[str, Any], make_trainer: Any) -> None:
    L.seed_everything(0)
    module = GRPO("lit-align/tiny", completions=4, sampling={"max_new_tokens": 8}, lr=1e-5, **parts)
    data = PromptDataModule(train="lit-align/manners-prompts", batch_size=2)
    sentinel = Sentinel(every_n_steps=1, stop=True)
    trainer = make_trainer(sentinel, max_steps=8, limit_val_batches=0)
    with pytest.warns(UserWarning, match=rf"Sentinel \({name}\) at step {step}: "):
        trainer.fit(module, data)
    assert trainer.global_step == step
    assert name in sentinel.messages
