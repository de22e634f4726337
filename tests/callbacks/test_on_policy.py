"""Callbacks beside algorithms that sample while they train: no trace, the same through a resume."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from lit_align import GRPO, PPO
from lit_align.algorithms.optim import OptimConfig
from lit_align.callbacks import (
    ExactResume,
    ExportHF,
    GenerationSamples,
    KLTracker,
    MergeModels,
    RichProgress,
    Sentinel,
    SyncReference,
    Throughput,
    WeightAverage,
    WinRate,
)
from lit_align.datamodules import PromptDataModule
from lit_align.scoring.references import EMA, FrozenCopy

PROMPTS = ["My lamp broke.", "Where is my order?"]
STEPS = 6


def _vowels(completions: list[str], **rest: Any) -> list[float]:
    """A reward that differs from text to text."""
    return [sum(letter in "aeiou" for letter in text) / (len(text) + 1) for text in completions]


def _longer(prompts: Any, firsts: Any, seconds: Any) -> list[float]:
    return [len(a) / max(1, len(a) + len(b)) for a, b in zip(firsts, seconds, strict=True)]


def _module(name: str, **options: Any) -> Any:
    common: dict[str, Any] = {
        "policy": "lit-align/tiny",
        "rewards": _vowels,
        "sampling": {"max_new_tokens": 8},
        "num_epochs": 2,
        "lr": 1e-3,
        "optim": OptimConfig(schedule="constant"),
    }
    if name == "ppo":
        return PPO(**common | options)
    return GRPO(**common | {"completions": 3, "beta": 0.1} | options)


def _data() -> PromptDataModule:
    rows = "lit-align/manners-prompts"
    return PromptDataModule(train=rows, val=rows, batch_size=3, eval_batch_size=3, num_workers=0)


def _all(folder: Path) -> list[Any]:
    return [
        KLTracker(every_n_steps=2, name="batch"),
        KLTracker(rows=PROMPTS, every_n_steps=2, max_new_tokens=4, name="sampled"),
        KLTracker(name="answers"),
        GenerationSamples(PROMPTS, 2, max_new_tokens=4, terminal=False),
        WinRate(PROMPTS, _longer, max_new_tokens=4),
        Sentinel(1, prompts=PROMPTS, max_new_tokens=4),
        Throughput(2),
        WeightAverage("bema"),
        ExportHF(folder / "export", every_n_steps=3),
        MergeModels(str(folder / "mixed")),
        RichProgress(seconds=0.0),
    ]


def _fit(make_trainer: Any, module: Any, *callbacks: Any, path: Any = None, **options: Any) -> Any:
    given = {"limit_val_batches": 1, "val_check_interval": 3, "check_val_every_n_epoch": None}
    trainer = make_trainer(*callbacks, **given | {"max_steps": STEPS, "enable_progress_bar": True} | options)
    trainer.fit(module, _data(), ckpt_path=path)
    return trainer


def _weights(module: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in module.policy.named_parameters()}


def _assert_equal(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    assert one.keys() == two.keys()
    assert all(torch.equal(value, two[name]) for name, value in one.items())


@pytest.mark.parametrize("name", ["grpo", "ppo"])
def test_training_is_the_same_bit_for_bit(name: str, make_trainer: Any, tmp_path: Path) -> None:
    found = []
    for callbacks in ([], _all(tmp_path)):
        L.seed_everything(0)
        module = _module(name)
        trainer = _fit(make_trainer, module, *callbacks)
        found.append((_weights(module), torch.get_rng_state(), {**trainer.callback_metrics}))
    (plain, state, logged), (beside, state_beside, logged_beside) = found
    _assert_equal(plain, beside)
    assert torch.equal(state, state_beside)
    # They said something, and what the module said is as it was but for what the average changes.
    told = {"train/batch/full", "train/sampled/k3", "val/answers/full", "val/win_rate"}
    assert told | {"train/throughput/tokens"} <= logged_beside.keys()
    for metric in (key for key in logged if key.startswith("train/") and "time" not in key):
        assert torch.equal(logged[metric], logged_beside[metric]), metric


def test_the_answers_of_validation_are_measured(make_trainer: Any) -> None:
    """Its k1 per answer is the algorithm's own estimate of the KL from the same reference."""
    L.seed_everything(0)
    trainer = _fit(make_trainer, _module("grpo"), KLTracker())
    found = {key: float(value) for key, value in trainer.callback_metrics.items()}
    assert found["val/objective/kl"] != 0
    assert found["val/kl/k1_per_sequence"] == pytest.approx(found["val/objective/kl"], rel=1e-4, abs=1e-5)
    assert found["val/kl/full"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["grpo", "ppo"])
def test_all_go_on_through_a_resume(name: str, make_trainer: Any, tmp_path: Path) -> None:
    """Cut off in the middle of a rollout, before a validation: the same numbers as without the cut."""

    def run(folder: Path, steps: int, path: Any = None) -> Any:
        L.seed_everything(0)
        module = _module(name)
        callbacks = [*_all(folder), ExactResume()]
        trainer = _fit(make_trainer, module, *callbacks, path=path, max_steps=steps, default_root_dir=folder)
        average = next(c for c in callbacks if isinstance(c, WeightAverage)).weights(module)
        return trainer, _weights(module), average

    whole, weights, average = run(tmp_path / "whole", STEPS)
    first, *_ = run(tmp_path / "cut", 3)
    first.save_checkpoint(tmp_path / "cut.ckpt")
    resumed, weights_resumed, average_resumed = run(tmp_path / "cut", STEPS, tmp_path / "cut.ckpt")
    _assert_equal(weights, weights_resumed)
    _assert_equal(average, average_resumed)
    speed = ("throughput/tokens_per", "throughput/steps_per", "memory", "time")
    for key, value in whole.callback_metrics.items():
        if not any(part in key for part in speed):
            assert torch.equal(value, resumed.callback_metrics[key]), key
    samples = [(tmp_path / place / "samples.jsonl").read_text() for place in ("whole", "cut")]
    # The first half of the run was its own end, and had a look there.
    assert samples[0] == "".join(x for x in samples[1].splitlines(True) if '"step": 3,' not in x)
    mixed = [(tmp_path / place / "mixed/model.safetensors").read_bytes() for place in ("whole", "cut")]
    assert mixed[0] == mixed[1]


def test_a_reference_that_follows_equals_the_algorithm_s_own(make_trainer: Any) -> None:
    found = []
    for reference, callbacks in ((EMA(0.5, 2), []), (FrozenCopy(), [SyncReference(0.5, 2)])):
        L.seed_everything(0)
        module = _module("grpo", reference=reference)
        _fit(make_trainer, module, *callbacks)
        found.append((_weights(module), dict(module.reference.named_parameters())))
    for one, two in zip(*found, strict=True):
        _assert_equal(one, two)
    # It has moved.
    start = _module("grpo")
    start.configure_model()
    now = found[1][1]
    assert any(not torch.equal(p, now[f"frozen.{n}"]) for n, p in start.policy.named_parameters())
