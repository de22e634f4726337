"""Healthy runs of the algorithms that sample, as their configurations are, raise no message."""

import importlib
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import yaml

import lit_align
from lit_align.callbacks import KLTracker, Sentinel, Throughput

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
