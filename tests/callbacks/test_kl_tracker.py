"""KL of a policy from its reference: the numbers, and that measuring leaves no trace."""

import math
from typing import Any

import lightning as L
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_align import SFT
from lit_align.callbacks import KLTracker
from lit_align.datamodules import SupervisedDataModule

GIVEN = [{"prompt": "Hello", "completion": " you there"}, {"prompt": "Where is", "completion": " it"}] * 2
PROMPTS = ["Hello", "Where is my order?", "Yes"]


def _weights(module: Any) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in module.state_dict().items()}


def _by_hand(policy: Any, reference: Any, rows: list[dict[str, Any]]) -> dict[str, float]:
    """From full log-softmax tables in float64, one row at a time."""
    sums, tokens = dict.fromkeys(("k1", "k3", "full"), 0.0), 0
    for row in rows:
        length = int(row["attention_mask"].sum())
        ids, labels = row["input_ids"][:length], row["labels"][:length]
        with torch.no_grad():
            p, q = (
                m.eval()(input_ids=ids[None]).logits[0, :-1].double().log_softmax(-1)
                for m in (policy, reference)
            )
        keep = labels[1:] != -100
        p, q, targets = p[keep], q[keep], labels[1:][keep][:, None]
        d = (p.gather(1, targets) - q.gather(1, targets)).squeeze(1)
        sums["k1"] += float(d.sum())
        sums["k3"] += float(((-d).exp() - 1 + d).sum())
        sums["full"] += float((p.exp() * (p - q)).sum())
        tokens += len(d)
    found = {name: value / tokens for name, value in sums.items()}
    return found | {f"{name}_per_sequence": value / len(rows) for name, value in sums.items()}


def test_the_numbers_are_those_of_the_definition(
    make_stranger, make_model, make_trainer, loader, rows, package
) -> None:
    module = make_stranger(package)
    trainer = make_trainer(KLTracker(), package=package, max_steps=3, limit_val_batches=4)
    trainer.fit(module, loader(), loader())
    found = {k: v for k, v in trainer.callback_metrics.items() if k.startswith("val/kl/")}
    trainer.validate(module, loader(), verbose=False)
    again = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/kl/")}
    expected = _by_hand(module.language_model, make_model(), rows)
    assert {k.removeprefix("val/kl/") for k in again} == set(expected)
    assert expected["full"] > 0.01
    for key, value in expected.items():
        assert again[f"val/kl/{key}"] == pytest.approx(value, rel=1e-4, abs=1e-6)
    assert found.keys() <= again.keys()


@pytest.mark.parametrize("options", [{"lora": True}, {}], ids=["lora", "full"])
@pytest.mark.parametrize("measured", [None, GIVEN, PROMPTS], ids=["batch", "given", "sampled"])
def test_training_is_the_same_bit_for_bit(
    options, measured, make_stranger, make_model, make_trainer, loader
) -> None:
    found = []
    for callbacks in ([], [KLTracker(rows=measured, every_n_steps=1)]):
        torch.manual_seed(3)
        module = make_stranger(model=make_model(dropout=0.2, **options))
        trainer = make_trainer(*callbacks, max_steps=3)
        trainer.fit(module, loader())
        found.append(_weights(module))
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])
    assert module.language_model.training
    assert float(trainer.callback_metrics["train/kl/k3"]) > 0
    # The full divergence needs the reference's logits, which are not kept of given rows.
    assert ("train/kl/full" in trainer.callback_metrics) == (measured is not GIVEN or "lora" in options)


def test_ways_to_have_a_reference_agree(make_stranger, make_model, make_trainer, loader, tmp_path) -> None:
    make_model().save_pretrained(tmp_path / "start")
    trackers = [
        KLTracker(way, rows=GIVEN, every_n_steps=2, name=name, batch_size=3)
        for name, way in {"a": "copy", "b": "cached", "c": str(tmp_path / "start")}.items()
    ]
    trainer = make_trainer(*trackers, max_steps=2)
    trainer.fit(make_stranger(), loader())
    metrics = trainer.callback_metrics
    assert float(metrics["train/a/k3"]) > 0.01
    for key in ("k1", "k3", "k1_per_sequence", "k3_per_sequence"):
        for other in ("b", "c"):
            assert float(metrics[f"train/{other}/{key}"]) == pytest.approx(
                float(metrics[f"train/a/{key}"]), 1e-4
            )


@pytest.mark.parametrize(("way", "measured"), [("copy", None), ("cached", GIVEN)])
def test_a_resumed_run_keeps_its_reference(
    way, measured, make_stranger, make_trainer, loader, tmp_path
) -> None:
    def run(steps: int, path: Any = None) -> Any:
        trainer = make_trainer(KLTracker(way, rows=measured, every_n_steps=2), max_steps=steps)
        # One batch is an epoch, since a plain loader goes on at an epoch's start.
        trainer.fit(make_stranger(), loader(8), ckpt_path=path)
        return trainer

    whole = run(4)
    run(2).save_checkpoint(tmp_path / "two.ckpt")
    assert torch.load(tmp_path / "two.ckpt", weights_only=True)["global_step"] == 2
    resumed = run(4, tmp_path / "two.ckpt")
    for key in ("train/kl/k1", "train/kl/k3"):
        assert float(resumed.callback_metrics[key]) == float(whole.callback_metrics[key]) != 0
    assert "on_load_checkpoint" not in vars(resumed.lightning_module)


def test_our_module_with_lora_and_every_logger(tmp_path) -> None:
    loggers = [L.pytorch.loggers.CSVLogger(tmp_path), L.pytorch.loggers.TensorBoardLogger(tmp_path)]
    trainer = L.Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        logger=loggers,
        callbacks=[KLTracker(every_n_steps=2)],
        max_steps=4,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        # Measured on steps that Lightning itself does not log.
        log_every_n_steps=1000,
    )
    module = SFT({"path": "lit-align/tiny", "lora": {"r": 4}}, lr=1e-2)
    trainer.fit(module, SupervisedDataModule(train="lit-align/manners-sft", val=None, batch_size=2))
    events = EventAccumulator(loggers[1].log_dir, {"histograms": 0}).Reload()
    values = events.Scalars("train/kl/full")
    # As with self.log, the first step is 0.
    assert [event.step for event in values] == [1, 3]
    assert all(event.value > 1e-4 for event in values)
    assert [event.step for event in events.Histograms("train/kl/full")] == [1, 3]
    written = (tmp_path / "lightning_logs/version_0/metrics.csv").read_text().splitlines()
    assert len(written) == 3
    assert "train/kl/k1_per_sequence" in written[0]


def test_micro_batches_do_not_count(make_stranger, make_trainer, loader, monkeypatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(
        "lit_align.callbacks.kl_tracker.log_now", lambda trainer, metrics: seen.append(trainer.global_step)
    )
    trainer = make_trainer(KLTracker(every_n_steps=2), max_steps=5, accumulate_grad_batches=2)
    trainer.fit(make_stranger(), loader())
    assert seen == [2, 4]


def test_a_bound_warns_and_stops(make_stranger, make_trainer, loader) -> None:
    trainer = make_trainer(KLTracker(every_n_steps=1, bound=1e-4, stop=True), max_steps=9)
    with pytest.warns(UserWarning, match=r"KL per token \(full\).*above the bound of 0.0001.*Training stops"):
        trainer.fit(make_stranger(), loader())
    assert trainer.global_step < 4
    quiet = make_trainer(KLTracker(every_n_steps=1, bound=math.inf, stop=True), max_steps=3)
    quiet.fit(make_stranger(), loader())
    assert quiet.global_step == 3


def test_wrong_arguments_are_told(make_stranger, make_trainer, loader) -> None:
    with pytest.raises(ValueError, match="stop needs a bound"):
        KLTracker(stop=True)
    with pytest.raises(ValueError, match="give rows with completions"):
        KLTracker("cached", rows=PROMPTS)
    with pytest.raises(ValueError, match="every_n_steps is 0"):
        KLTracker(every_n_steps=0)
    with pytest.raises(ValueError, match="no adapters to switch off"):
        make_trainer(KLTracker("adapter_off"), max_steps=1).fit(make_stranger(), loader())


def test_a_checkpoint_of_other_rows_is_told(make_stranger, make_trainer, loader, tmp_path) -> None:
    trainer = make_trainer(KLTracker(rows=GIVEN, every_n_steps=1), max_steps=1)
    trainer.fit(make_stranger(), loader())
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    other = [{"prompt": "Hello", "completion": " something else altogether"}]
    trainer = make_trainer(KLTracker(rows=other, every_n_steps=1), max_steps=2)
    with pytest.raises(ValueError, match="are the rows, the tokenizer or batch_size others"):
        trainer.fit(make_stranger(), loader(), ckpt_path=tmp_path / "one.ckpt")
