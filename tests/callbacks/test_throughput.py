"""Speed, under a clock of the test's own."""

from typing import Any

import pytest

from lit_align import SFT
from lit_align.callbacks import Throughput
from lit_align.datamodules import SupervisedDataModule


def test_tokens_steps_and_mfu(package, make_stranger, make_trainer, loader, rows, monkeypatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("lit_align.callbacks.throughput.time.perf_counter", lambda: clock[0])
    module = make_stranger(package)
    step, validation = module.training_step, module.validation_step

    def training_step(batch: Any, batch_idx: int) -> Any:
        clock[0] += 0.5
        return step(batch, batch_idx)

    def validation_step(batch: Any, batch_idx: int) -> Any:
        clock[0] += 100.0
        return validation(batch, batch_idx)

    monkeypatch.setattr(module, "training_step", training_step)
    monkeypatch.setattr(module, "validation_step", validation_step)
    callback = Throughput(every_n_steps=2, peak_tflops=1e-6)
    trainer = make_trainer(
        callback, package=package, max_steps=4, accumulate_grad_batches=2, val_check_interval=2
    )
    trainer.fit(module, loader(), loader())
    found = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("train/throughput")}
    # Two steps of two batches of half a second each; an epoch is all rows.
    tokens = sum(int(row["attention_mask"].sum()) for row in rows)
    assert found["train/throughput/steps_per_second"] == pytest.approx(2 / 2.0)
    assert found["train/throughput/tokens_per_second"] == pytest.approx(tokens / 2.0)
    assert found["train/throughput/tokens"] == 2 * tokens
    weights = sum(p.numel() for p in module.parameters())
    assert found["train/throughput/mfu"] == pytest.approx(6 * weights * tokens / 2.0 / 1e6, rel=1e-5)
    assert 0.01 < found["train/throughput/peak_memory_gb"] < 1000
    assert callback.state_dict() == {"tokens": 2 * tokens}
    callback.load_state_dict({"tokens": 5})
    assert callback.state_dict() == {"tokens": 5}


def test_tokens_since_the_last_time_are_kept_through_a_resume(make_stranger, make_trainer, loader, tmp_path):
    """Cut off after 3 of 6 steps, where only the first 2 were logged."""

    def run(steps: int, path: Any = None) -> float:
        trainer = make_trainer(Throughput(2), max_steps=steps)
        trainer.fit(make_stranger(), loader(8), ckpt_path=path)
        trainer.save_checkpoint(tmp_path / f"{steps}.ckpt")
        return float(trainer.callback_metrics["train/throughput/tokens"])

    whole = run(6)
    run(3)
    assert run(6, tmp_path / "3.ckpt") == whole


def test_our_batches(make_trainer) -> None:
    trainer = make_trainer(Throughput(1), max_steps=2)
    module = SFT("lit-align/tiny")
    trainer.fit(module, SupervisedDataModule(train="lit-align/manners-sft", val=None, batch_size=2))
    assert float(trainer.callback_metrics["train/throughput/tokens"]) == int(module.tokens_seen)


def test_wrong_arguments_are_told() -> None:
    with pytest.raises(ValueError, match="peak_tflops is 0"):
        Throughput(peak_tflops=0)
