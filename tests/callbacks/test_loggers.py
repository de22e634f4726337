"""What callbacks report arrives in Lightning's loggers, each one for real, W&B and MLflow offline."""

import csv
import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger

from lit_align import DPO, GRPO
from lit_align.callbacks import GenerationSamples, KLTracker, Sentinel, Throughput, WeightAverage, WinRate
from lit_align.datamodules import PreferenceDataModule, PromptDataModule

TOLD = [
    "train/kl/k1",
    "train/kl/full_per_sequence",
    "train/throughput/tokens_per_second",
    "val/val_kl/k3",
    "val/win_rate/judged",
]


def _length(completions: list[str], **rest: Any) -> list[float]:
    return [float(len(text)) for text in completions]


@pytest.fixture(params=["ours", "sampling", "stranger"])
def run(request: Any, make_trainer: Any, make_stranger: Any, loader: Any) -> Any:
    """Four steps and two validations of a module, with a logger."""

    def fit(logger: Any) -> None:
        callbacks = [
            KLTracker(every_n_steps=2),
            KLTracker(name="val_kl"),
            GenerationSamples(["Hello"], 2, max_new_tokens=4, terminal=False),
            WinRate(["Hello"], lambda *sides: [0.5], max_new_tokens=4),
            Throughput(2),
            WeightAverage(),
            Sentinel(),
        ]
        options: dict[str, Any] = {"logger": logger, "max_steps": 4, "val_check_interval": 2}
        trainer = make_trainer(*callbacks, limit_val_batches=1, **options)
        if request.param == "ours":
            pairs = "lit-align/manners-pairs"
            data = PreferenceDataModule(train=pairs, val=pairs, batch_size=2)
            trainer.fit(DPO({"path": "lit-align/tiny", "lora": {"r": 4}}), data)
        elif request.param == "sampling":
            rows = "lit-align/manners-prompts"
            prompts = PromptDataModule(train=rows, val=rows, batch_size=2)
            trainer.fit(GRPO("lit-align/tiny", rewards=_length, sampling={"max_new_tokens": 4}), prompts)
        else:
            trainer.fit(make_stranger(), loader(), loader())

    return fit


def test_csv(run: Any, tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, name="run")
    run(logger)
    with open(Path(logger.log_dir) / "metrics.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for name in TOLD:
        assert [row["step"] for row in rows if row.get(name)] == ["1", "3"], name
    # Lightning writes the samples' file beside the metrics.
    assert len((Path(logger.log_dir) / "samples.jsonl").read_text().splitlines()) == 2 * 2


def test_tensorboard(run: Any, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path, name="run")
    run(logger)
    events = EventAccumulator(logger.log_dir, {"histograms": 0}).Reload()
    for name in TOLD:
        assert [event.step for event in events.Scalars(name)] == [1, 3], name
    assert [event.step for event in events.Histograms("train/kl/full")] == [1, 3]
    (first, _) = events.Tensors("samples/text_summary")
    assert b"| prompt | decoding |" in first.tensor_proto.string_val[0]


def test_wandb_offline(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb", reason="needs wandb (pip install wandb)")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandbLogger(project="lit-align", save_dir=tmp_path, offline=True)
    run(logger)
    wandb.finish()
    (written,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    # A process of its own writes the file, and may still do so.
    for _ in range(100):
        content = written.read_bytes()
        missing = [name for name in (*TOLD, "histogram") if name.encode() not in content]
        if not missing:
            break
        time.sleep(0.1)
    assert missing == []
    tables = [json.loads(p.read_text()) for p in tmp_path.rglob("samples_*.table.json")]
    assert len(tables) == 2
    assert tables[0]["columns"] == ["prompt", "decoding", "before training", "now"]


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of MLflow's, whose tables take it ten seconds to make."""
    for package in ("mlflow", "sqlalchemy", "alembic"):
        pytest.importorskip(package, reason="needs mlflow (pip install mlflow-skinny sqlalchemy alembic)")
    from mlflow.tracking import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "empty.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.mark.slow
def test_mlflow_offline(
    run: Any, empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    tracking, artifacts = f"sqlite:///{tmp_path / 'mlflow.db'}", str(tmp_path / "artifacts")
    logger = MLFlowLogger("lit-align", tracking_uri=tracking, artifact_location=artifacts)
    run(logger)
    for name in TOLD:
        points = logger.experiment.get_metric_history(logger.run_id, name)
        assert [point.step for point in points] == [1, 3], name
    # A name and its beginning, which MLflow's old store of plain files does not take.
    assert logger.experiment.get_metric_history(logger.run_id, "val/win_rate")
    (folder,) = tmp_path.glob("artifacts/*/artifacts/samples")
    assert sorted(p.name for p in folder.iterdir()) == ["step_000001.md", "step_000003.md"]


def test_several_loggers_at_once(run: Any, tmp_path: Path) -> None:
    loggers: list[Any] = [CSVLogger(tmp_path, name="csv"), TensorBoardLogger(tmp_path, name="tb")]
    run(loggers)
    assert "train/kl/k3" in (Path(loggers[0].log_dir) / "metrics.csv").read_text()
    assert list(Path(loggers[1].log_dir).glob("events.*"))
