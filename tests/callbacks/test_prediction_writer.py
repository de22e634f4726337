"""Predictions become one line per row, with any module."""

import json
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from lit_align.callbacks import PredictionWriter


class Stranger(L.LightningModule):
    """Not one of ours; returns what it is told."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer

    def predict_step(self, batch: torch.Tensor, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return self.answer(batch)


def _predict(tmp_path: Path, answer: Any, loaders: Any, output: Path | None = None) -> list[dict[str, Any]]:
    trainer = L.Trainer(
        default_root_dir=tmp_path,
        callbacks=[PredictionWriter(output)],
        logger=False,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_checkpointing=False,
    )
    trainer.predict(Stranger(answer), loaders, return_predictions=False)
    path = output or tmp_path / "predictions.jsonl"
    assert [p.name for p in path.parent.iterdir() if p.is_file()] == [path.name]
    return [json.loads(line) for line in path.read_text().splitlines()]


def _columns(batch: torch.Tensor) -> dict[str, Any]:
    return {
        "row": batch.tolist(),
        "score": batch.double() / 8,
        "half": (batch / 8).bfloat16(),
        "text": ["é"] * len(batch),
    }


def test_rows_in_order_and_once(tmp_path: Path) -> None:
    # As a sampler that shuffles and fills up with repetitions brings them.
    rows = _predict(tmp_path, _columns, DataLoader([3, 1, 2, 0, 1], batch_size=2))
    assert [row["row"] for row in rows] == [0, 1, 2, 3]
    assert rows[3] == {"row": 3, "score": 0.375, "half": 0.375, "text": "é"}


def test_columns_without_row_numbers_keep_their_order(tmp_path: Path) -> None:
    rows = _predict(tmp_path, lambda batch: {"score": batch.float()}, DataLoader([3, 1, 3], batch_size=2))
    assert rows == [{"score": 3.0}, {"score": 1.0}, {"score": 3.0}]


def test_several_loaders_and_a_file_of_ones_own(tmp_path: Path) -> None:
    loaders = [DataLoader([0, 1], batch_size=2), DataLoader([0], batch_size=2)]
    rows = _predict(tmp_path, _columns, loaders, tmp_path / "deep" / "mine.jsonl")
    assert [(row["loader"], row["row"]) for row in rows] == [(0, 0), (0, 1), (1, 0)]


def test_what_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="different lengths"):
        _predict(tmp_path, lambda batch: {"a": [1], "b": [1, 2]}, DataLoader([0]))
    with pytest.raises(ValueError, match="returned Tensor"):
        _predict(tmp_path, lambda batch: batch, DataLoader([0]))
