"""Callbacks under a trainer of ``pytorch_lightning``, which many projects still import."""

import json
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM

from lit_align import callbacks
from lit_align.callbacks import ExactResume, ExportHF, NanGuard, PredictionWriter, Preemption, ProgressLines
from lit_align.callbacks.nan_guard import NonFinite

pl = pytest.importorskip("pytorch_lightning")

#: Callbacks that are run under both packages in the tests of their own.
ELSEWHERE = {
    "GenerationSamples",
    "KLTracker",
    "MergeAdapters",
    "MergeModels",
    "RichProgress",
    "Sentinel",
    "SyncReference",
    "Throughput",
    "WeightAverage",
    "WinRate",
}
HERE = {"ExactResume", "ExportHF", "NanGuard", "PredictionWriter", "Preemption", "ProgressLines"}
JUDGES = {"EndpointJudge", "RewardJudge"}


def test_every_callback_is_tried() -> None:
    assert set(callbacks.__all__) == ELSEWHERE | HERE | JUDGES


def test_export(make_stranger, make_trainer, loader, tmp_path) -> None:
    module = make_stranger(pl)
    export = ExportHF(tmp_path / "out", every_n_steps=2)
    make_trainer(export, package=pl, max_steps=3).fit(module, loader())
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["step_000002", "step_000003"]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out/step_000003")
    weight = module.language_model.lm_head.weight
    assert torch.equal(loaded.lm_head.weight, weight)


def test_exact_resume(make_stranger, make_model, make_trainer, rows, tmp_path) -> None:
    """Shuffled data and dropout, cut off in the middle of the second epoch."""

    def run(steps: int, path: Any = None) -> Any:
        module = make_stranger(pl, model=make_model(dropout=0.2))
        data = DataLoader(rows, batch_size=2, shuffle=True)  # type: ignore[arg-type]
        trainer = make_trainer(ExactResume(seed=3), package=pl, max_steps=steps)
        trainer.fit(module, data, ckpt_path=path)
        return trainer

    whole = run(9).lightning_module.state_dict()
    run(6).save_checkpoint(tmp_path / "six.ckpt")
    resumed = run(9, tmp_path / "six.ckpt").lightning_module.state_dict()
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_nan_guard(make_stranger, make_trainer, loader) -> None:
    module = make_stranger(pl)
    inner = module.training_step
    module.training_step = lambda batch, batch_idx: (
        inner(batch, batch_idx) * (float("nan") if module.global_step == 2 else 1.0)
    )
    with pytest.raises(NonFinite, match="loss not finite at optimiser step 3"):
        make_trainer(NanGuard(), package=pl, max_steps=5).fit(module, loader())


def test_predictions(make_stranger, make_trainer, loader, tmp_path) -> None:
    module = make_stranger(pl)
    module.predict_step = lambda batch, batch_idx: {"length": batch["attention_mask"].sum(1)}
    writer = PredictionWriter(tmp_path / "out.jsonl")
    make_trainer(writer, package=pl).predict(module, loader())
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["length"] for line in lines] == [9, 5, 7, 8, 4, 6, 9, 3]


def test_preemption_saves_on_request(make_stranger, make_trainer, loader, tmp_path) -> None:
    request = tmp_path / "save"
    request.touch()
    trainer = make_trainer(Preemption(save_file=request), package=pl, max_steps=2)
    trainer.fit(make_stranger(pl), loader())
    assert not request.exists()
    assert list(tmp_path.rglob("*.ckpt"))


def test_progress_lines(make_stranger, make_trainer, loader, capsys) -> None:
    make_trainer(ProgressLines(0.0), package=pl, max_steps=2).fit(make_stranger(pl), loader())
    assert "step 2/2" in capsys.readouterr().out
