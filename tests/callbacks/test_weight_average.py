"""Averages of weights: the recurrence, validation with them, and a resume."""

from typing import Any

import lightning as L
import pytest
import torch
from transformers import AutoModelForCausalLM

from lit_align.callbacks import WeightAverage


class Record(L.Callback):
    """The trained weights at the start and after each step, and those that validation sees."""

    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []
        self.validated: list[dict[str, torch.Tensor]] = []

    def _now(self, module: Any) -> dict[str, torch.Tensor]:
        return {n: p.detach().clone().double() for n, p in module.named_parameters() if p.requires_grad}

    def on_train_start(self, trainer: Any, module: Any) -> None:
        self.steps.append(self._now(module))

    def on_train_batch_end(self, trainer: Any, module: Any, *rest: Any) -> None:
        self.steps.append(self._now(module))

    def on_validation_batch_start(self, trainer: Any, module: Any, *rest: Any) -> None:
        self.validated.append(self._now(module))


def _expected(kind: str, steps: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """From the equations, in float64."""
    start, average, last = steps[0], dict(steps[0]), len(steps) - 1
    for t, now in enumerate(steps[1:], start=1):
        share = 0.1 if kind == "ema" else (10 + t) ** -0.5
        average = {name: (1 - share) * value + share * now[name] for name, value in average.items()}
    if kind == "ema":
        return average
    bias = (10 + last) ** -0.2
    return {name: value + bias * (steps[-1][name] - start[name]) for name, value in average.items()}


@pytest.mark.parametrize("kind", ["ema", "bema"])
@pytest.mark.parametrize("lora", [False, True])
def test_the_recurrence_and_what_validation_sees(
    kind, lora, make_stranger, make_trainer, loader, tmp_path
) -> None:
    found = []
    for callbacks in ([], [WeightAverage(kind, 0.9, directory=str(tmp_path / "average"))]):
        module, record = make_stranger(lora=lora), Record()
        trainer = make_trainer(*callbacks, record, max_steps=4, limit_val_batches=1, val_check_interval=4)
        trainer.fit(module, loader(), loader())
        found.append(record)
    plain, averaged = found
    # Training is the same with it and without.
    assert all(torch.equal(plain.steps[-1][n], averaged.steps[-1][n]) for n in plain.steps[-1])
    assert all(
        torch.equal(p.double(), averaged.steps[-1][n])
        for n, p in module.named_parameters()
        if p.requires_grad
    )
    expected = _expected(kind, averaged.steps)
    for name, value in expected.items():
        assert torch.allclose(averaged.validated[0][name], value, atol=1e-6)
    assert any((value - averaged.steps[-1][name]).abs().max() > 1e-3 for name, value in expected.items())
    if not lora:
        written = AutoModelForCausalLM.from_pretrained(tmp_path / "average").state_dict()
        key = "model.layers.0.mlp.up_proj.weight"
        assert torch.allclose(written[key].double(), expected[f"language_model.{key}"], atol=1e-6)


@pytest.mark.parametrize("lora", [False, True])
def test_a_resume_keeps_the_average(lora, package, make_stranger, make_trainer, loader, tmp_path) -> None:
    def run(steps: int, path: Any = None) -> Any:
        callback = WeightAverage("bema")
        trainer = make_trainer(callback, package=package, max_steps=steps)
        trainer.fit(make_stranger(package, lora=lora), loader(8), ckpt_path=path)
        return trainer, callback.weights(trainer.lightning_module)

    _, whole = run(4)
    trainer, _ = run(2)
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    assert torch.load(tmp_path / "two.ckpt", weights_only=True)["callbacks"]
    _, resumed = run(4, tmp_path / "two.ckpt")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_validation_that_fails_leaves_the_weights(make_stranger, make_trainer, loader) -> None:
    class Fails(L.Callback):
        def on_validation_batch_start(self, *rest: Any) -> None:
            raise RuntimeError("no")

    module, record = make_stranger(), Record()
    trainer = make_trainer(WeightAverage(), record, Fails(), max_steps=4)
    with pytest.raises(RuntimeError, match="no"):
        trainer.fit(module, loader(), loader())
    assert all(torch.equal(p.double(), record.steps[-1][n]) for n, p in module.named_parameters())


class SaveInside(L.Callback):
    """As Preemption does where a validation is long."""

    def __init__(self, path: Any) -> None:
        self.path = path

    def on_validation_batch_end(self, trainer: Any, *rest: Any) -> None:
        trainer.save_checkpoint(self.path)


def test_a_checkpoint_from_inside_a_validation_has_the_weights_in_training(
    make_stranger, make_trainer, loader, tmp_path
) -> None:
    path, record = tmp_path / "inside.ckpt", Record()
    callbacks = (WeightAverage("ema", 0.9), record, SaveInside(path))
    module = make_stranger()
    make_trainer(*callbacks, max_steps=4, limit_val_batches=1, val_check_interval=4).fit(
        module, loader(), loader()
    )
    saved = torch.load(path, weights_only=True)["state_dict"]
    assert any(not torch.equal(record.validated[-1][n], value) for n, value in record.steps[-1].items())
    assert all(torch.equal(saved[n].double(), value) for n, value in record.steps[-1].items())


def test_wrong_arguments_are_told() -> None:
    with pytest.raises(ValueError, match="choose ema or bema"):
        WeightAverage("swa")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="decay is 1"):
        WeightAverage(decay=1.0)
