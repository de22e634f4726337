"""Samples while training: what is written where, and that nothing else changes."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_align import DPO, RewardModel
from lit_align.callbacks import GenerationSamples
from lit_align.callbacks.reporting import log_table, markdown
from lit_align.callbacks.sample_table import render
from lit_align.datamodules import PreferenceDataModule
from lit_align.rollouts.generate import generate_text

PROMPTS = ["Hello", [{"role": "user", "content": "Where is my order?"}], "Yes"]


def _samples(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("lora", [False, True])
def test_training_is_the_same_bit_for_bit(lora, make_stranger, make_model, make_trainer, loader) -> None:
    found = []
    for callbacks in ([], [GenerationSamples(PROMPTS, 1, max_new_tokens=4, terminal=False)]):
        torch.manual_seed(3)
        module = make_stranger(model=make_model(dropout=0.2, lora=lora))
        make_trainer(*callbacks, max_steps=3).fit(module, loader())
        state = {key: value.clone() for key, value in module.state_dict().items()}
        found.append((state, torch.get_rng_state(), [m.training for m in module.modules()]))
    assert found[0][0].keys() == found[1][0].keys()
    assert all(torch.equal(found[0][0][key], found[1][0][key]) for key in found[0][0])
    assert torch.equal(found[0][1], found[1][1])
    assert found[0][2] == found[1][2]


@pytest.mark.parametrize("lora", [None, {"r": 4}], ids=["full", "lora"])
def test_training_of_ours_is_the_same_bit_for_bit(lora, make_trainer) -> None:
    found = []
    for callbacks in ([], [GenerationSamples(["Hello", "No"], 1, max_new_tokens=6, terminal=False)]):
        L.seed_everything(0)
        module = DPO({"path": "lit-align/tiny", "lora": lora}, lr=1e-3)
        data = PreferenceDataModule(train="lit-align/manners-pairs", batch_size=4)
        make_trainer(*callbacks, max_steps=3, limit_val_batches=0).fit(module, data)
        found.append({n: p.detach().clone() for n, p in module.named_parameters()})
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


def test_before_and_now(
    package, make_stranger, make_model, make_trainer, loader, tokenizer, tmp_path
) -> None:
    module = make_stranger(package)
    callback = GenerationSamples(PROMPTS, 2, max_new_tokens=6, batch_size=2, terminal=False)
    make_trainer(callback, package=package, max_steps=3).fit(module, loader())
    found = _samples(tmp_path / "samples.jsonl")
    # Every second step, and the last one.
    assert [(s["step"], s["row"], s["mode"]) for s in found] == [
        (step, row, mode) for step in (2, 3) for row in range(3) for mode in ("greedy", "sampled")
    ]
    assert found[2]["prompt"] == "user: Where is my order?"
    options: dict[str, Any] = {"max_new_tokens": 6, "temperature": 0.0, "batch_size": 2}
    before = generate_text(make_model(), tokenizer, PROMPTS, **options)
    now = generate_text(module.language_model, tokenizer, PROMPTS, **options)
    greedy = [s for s in found if s["step"] == 3 and s["mode"] == "greedy"]
    assert [s["before"] for s in greedy] == before
    assert [s["completion"] for s in greedy] == now
    assert before != now


def test_at_validation_and_in_validate(make_stranger, make_trainer, loader, tmp_path) -> None:
    options: dict[str, Any] = {"max_new_tokens": 2, "temperature": 0.0, "terminal": False}
    trainer = make_trainer(
        GenerationSamples(["Hello"], **options), max_steps=5, val_check_interval=2, num_sanity_val_steps=1
    )
    trainer.fit(make_stranger(), loader(), loader())
    assert [s["step"] for s in _samples(tmp_path / "samples.jsonl")] == [2, 4, 5]
    trainer = make_trainer(GenerationSamples(["Hello"], **options))
    trainer.validate(make_stranger(), loader(), verbose=False)
    # An older run's file is left alone.
    (sample,) = _samples(tmp_path / "samples-1.jsonl")
    assert sample["before"] is None
    assert sample["mode"] == "greedy"


def test_a_resumed_run_goes_on_in_its_file(make_stranger, make_trainer, loader, tmp_path) -> None:
    def run(steps: int, path: Any = None) -> Any:
        callback = GenerationSamples(["Hello"], 1, max_new_tokens=4, terminal=False)
        trainer = make_trainer(callback, max_steps=steps)
        trainer.fit(make_stranger(), loader(8), ckpt_path=path)
        return trainer

    (tmp_path / "samples.jsonl").write_text("not ours\n")
    run(2).save_checkpoint(tmp_path / "two.ckpt")
    assert torch.load(tmp_path / "two.ckpt", weights_only=True)["callbacks"]
    file = tmp_path / "samples-1.jsonl"
    whole = file.read_text()
    # Cut off in the middle of a line of a later step.
    file.write_text(whole + json.dumps({"step": 3}) + '\n{"step": 3, "comp')
    run(3, tmp_path / "two.ckpt")
    found = _samples(file)
    assert file.read_text().startswith(whole)
    assert [s["step"] for s in found] == [1, 1, 2, 2, 3, 3]
    assert [s["before"] for s in found[4:]] == [s["before"] for s in found[:2]]
    assert (tmp_path / "samples.jsonl").read_text() == "not ours\n"


def test_our_module_and_loggers(tmp_path, capsys) -> None:
    loggers = [L.pytorch.loggers.TensorBoardLogger(tmp_path), L.pytorch.loggers.CSVLogger(tmp_path)]
    trainer = L.Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        logger=loggers,
        callbacks=[GenerationSamples([[{"role": "user", "content": "My lamp | broke."}]], 2, 8)],
        max_steps=2,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(DPO("lit-align/tiny"), PreferenceDataModule(train="lit-align/manners-pairs", batch_size=2))
    events = EventAccumulator(loggers[0].log_dir).Reload()
    (text,) = events.Tensors("samples/text_summary")
    written = text.tensor_proto.string_val[0].decode()
    assert "| prompt | decoding | before training | now |" in written
    assert "user: My lamp \\| broke." in written
    assert (Path(loggers[0].log_dir) / "samples.jsonl").exists()
    shown = capsys.readouterr().out
    assert "samples at step 2" in shown
    assert "before training" in shown


def test_tables_of_other_loggers() -> None:
    calls: list[Any] = []
    wandb = SimpleNamespace(log_table=lambda **arguments: calls.append(arguments))
    client = SimpleNamespace(log_text=lambda *arguments: calls.append(arguments))
    mlflow = SimpleNamespace(experiment=client, run_id="run")
    loops = SimpleNamespace(epoch_loop=SimpleNamespace(_batches_that_stepped=7))
    trainer = SimpleNamespace(is_global_zero=True, loggers=[wandb, mlflow], fit_loop=loops)
    log_table(trainer, "samples", ("a", "b"), [["1", "2"]])
    assert calls[0] == {"key": "samples", "columns": ["a", "b"], "data": [["1", "2"]], "step": 7}
    assert calls[1] == ("run", markdown(("a", "b"), [["1", "2"]]), "samples/step_000007.md")


def test_texts_cannot_move_the_cursor() -> None:
    shown = render("t", [["\x1b[2J", "greedy", "[red]x", "a" * 1000]])
    assert "\x1b" not in shown
    assert "[red]x" in shown
    assert shown.count("a") < 500
    assert markdown(["a"], [["<b>\nx"]]).splitlines()[-1] == "| &lt;b><br>x |"


def test_wrong_arguments_are_told(make_trainer) -> None:
    with pytest.raises(ValueError, match="GenerationSamples: no prompts"):
        GenerationSamples([])
    module = RewardModel("lit-align/tiny")
    data = PreferenceDataModule(train="lit-align/manners-pairs", batch_size=2)
    with pytest.raises(ValueError, match="SequenceClassification does not generate"):
        make_trainer(GenerationSamples(["Hello"]), max_steps=1).fit(module, data)
