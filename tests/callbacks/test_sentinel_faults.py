"""A fault of each kind, planted in the run of someone's module, stops it within a few steps."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from lit_align.callbacks import Sentinel
from lit_align.callbacks.sentinel_checks import CHECKS

Curve = Callable[[int], float]

#: For each check of metrics: what the module logs at step ``t``, and the step that must be the last.
LOGGED: dict[str, tuple[dict[str, Curve], int]] = {
    "not_finite": ({"train/reward": lambda t: 0.1 * t if t < 4 else math.nan}, 5),
    "constant_rewards": ({"train/reward": lambda t: 0.25}, 5),
    "groups_without_spread": ({"train/frac_reward_zero_std": lambda t: 1.0}, 3),
    "kl_range": ({"train/kl": lambda t: 0.3 * t}, 6),
    "ratio_at_start": ({"train/ratio/first_mean": lambda t: 1.1}, 1),
    "entropy_collapse": ({"train/entropy": lambda t: 2.0 if t < 6 else 0.01}, 9),
    "length_drift": ({"train/completions/mean_length": lambda t: 20.0 + 5 * t}, 8),
    "held_out_reward": (
        {"train/reward": lambda t: 0.1 * t, "train/rewards/gold": lambda t: 1 - 0.05 * t},
        10,
    ),
}
#: What is planted in the loss and the data instead.
ELSEWHERE = {"zero_loss", "all_masked", "gradient_spike", "repetition"}


def _run(trainer: Any, module: Any, *loaders: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(module, *loaders)
    return [str(w.message) for w in caught if str(w.message).startswith("Sentinel")]


def test_every_check_has_a_planted_fault() -> None:
    assert LOGGED.keys() | ELSEWHERE == CHECKS.keys()


def _logging(module: Any, curves: dict[str, Curve]) -> Any:
    inner = module.training_step

    def training_step(batch: Any, batch_idx: int) -> Any:
        for metric, curve in curves.items():
            module.log(metric, curve(module.global_step))
        return inner(batch, batch_idx)

    module.training_step = training_step
    return module


@pytest.mark.parametrize("name", LOGGED)
def test_metrics(name: str, make_stranger: Any, make_trainer: Any, loader: Any) -> None:
    curves, bound = LOGGED[name]
    module = _logging(make_stranger(lr=1e-3), curves)
    trainer = make_trainer(Sentinel(stop=True, held_out="train/rewards/gold"), max_steps=16)
    (message,) = _run(trainer, module, loader())
    assert message.startswith(f"Sentinel ({name}) at step {bound}: ")
    assert "ook at" in message or "Read" in message
    assert trainer.global_step == bound


def test_numbers_of_a_healthy_run(make_stranger: Any, make_trainer: Any, loader: Any) -> None:
    curves: dict[str, Curve] = {
        "train/reward": lambda t: 0.1 * t,
        "train/rewards/gold": lambda t: 0.05 * t,
        "train/frac_reward_zero_std": lambda t: 0.25,
        "train/kl": lambda t: 0.01 * t,
        "train/ratio/first_mean": lambda t: 1 + 1e-4 * (-1) ** t,
        "train/entropy": lambda t: 2.0 - 0.1 * t,
        "train/completions/mean_length": lambda t: 20.0 + t,
    }
    module = _logging(make_stranger(lr=1e-3), curves)
    trainer = make_trainer(Sentinel(stop=True, held_out="train/rewards/gold"), max_steps=16)
    assert _run(trainer, module, loader()) == []
    assert trainer.global_step == 16


@pytest.mark.parametrize(
    ("name", "bound", "factor"),
    [("zero_loss", 3, lambda t: 0.0), ("gradient_spike", 13, lambda t: 1e4 if t == 12 else 1.0)],
)
def test_losses(
    name: str, bound: int, factor: Curve, make_stranger: Any, make_trainer: Any, loader: Any
) -> None:
    module = make_stranger(lr=1e-4)
    inner = module.training_step
    module.training_step = lambda batch, batch_idx: inner(batch, batch_idx) * factor(module.global_step)
    trainer = make_trainer(Sentinel(stop=True), max_steps=20)
    (message,) = _run(trainer, module, loader())
    assert message.startswith(f"Sentinel ({name}) at step {bound}: ")
    assert trainer.global_step == bound


def test_all_labels_masked(make_stranger: Any, make_trainer: Any, rows: Any) -> None:
    masked = [{**row, "labels": torch.full_like(row["labels"], -100)} for row in rows]
    sentinel = Sentinel(stop=True)
    trainer = make_trainer(sentinel, max_steps=8)
    told = _run(trainer, make_stranger(), DataLoader(masked, batch_size=2))  # type: ignore[arg-type]
    assert "all_masked" in sentinel.messages
    assert told
    assert trainer.global_step == 1


def test_repetition_and_the_reward_of_validation(
    make_stranger: Any, make_trainer: Any, make_model: Any, loader: Any, tokenizer: Any
) -> None:
    """At validations, one after each step: the text at the first, the rewards at the tenth."""
    model = make_model()
    token = tokenizer(" the", add_special_tokens=False)["input_ids"][0]
    model.lm_head.weight.data.zero_()
    model.lm_head.bias = torch.nn.Parameter(10 * torch.eye(len(tokenizer))[token])
    module = _logging(make_stranger(model=model, lr=1e-4), {"train/reward": lambda t: 0.1 * t})
    module.validation_step = lambda batch, batch_idx: module.log("val/reward", -float(module.global_step))
    sentinel = Sentinel(prompts=["Hello"], max_new_tokens=20)
    trainer = make_trainer(sentinel, max_steps=12, val_check_interval=1)
    first, second = _run(trainer, module, loader(), loader(8))
    assert first.startswith("Sentinel (repetition) at step 1: ")
    assert second.startswith("Sentinel (held_out_reward) at step 10: ")
