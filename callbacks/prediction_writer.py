"""Predictions as JSON lines, one per row of the data set."""

import json
from pathlib import Path
from typing import Any

import lightning as L
from torch import Tensor

from lit_align.runtime.data_place import data_place


class PredictionWriter(L.Callback):
    """Write what ``predict_step`` returns, a mapping of per-row lists or tensors, as JSONL.

    Each process that has rows of its own writes its part as it goes; at the end process zero puts the
    parts together in the order of the rows, and a row that padding of a distributed sampler brought twice
    is kept once.

    Args:
        output: the file; ``predictions.jsonl`` in the trainer's directory by default.
    """

    def __init__(self, output: str | Path | None = None) -> None:
        self.output = Path(output) if output is not None else None
        self._part: Path | None = None
        self._target: Path | None = None

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Agree on the file, and start this process's part of it."""
        target = self.output or Path(trainer.default_root_dir) / "predictions.jsonl"
        self._target = Path(trainer.strategy.broadcast(str(target)))
        self._target.parent.mkdir(parents=True, exist_ok=True)
        place = data_place(trainer)
        # Who reads the same rows as another has nothing to add.
        self._part = self._target.with_name(f".{self._target.name}.{place.rank}") if place.is_first else None
        if self._part is not None:
            self._part.write_text("", encoding="utf-8")

    def on_predict_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Append the rows of a batch.

        Raises:
            ValueError: ``predict_step`` did not return a mapping of equally long columns.
        """
        if self._part is None:
            return
        with self._part.open("a", encoding="utf-8") as file:
            for row in _rows(outputs):
                file.write(json.dumps({"loader": dataloader_idx, **row}, ensure_ascii=False) + "\n")

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put the parts together."""
        assert self._target is not None
        trainer.strategy.barrier("predictions")
        if not trainer.is_global_zero:
            return
        shares = range(data_place(trainer).size)
        parts = [self._target.with_name(f".{self._target.name}.{rank}") for rank in shares]
        rows = [json.loads(line) for part in parts for line in part.read_text(encoding="utf-8").splitlines()]
        several = len({row["loader"] for row in rows}) > 1
        unique = {(row["loader"], row.get("row", position)): row for position, row in enumerate(rows)}
        with self._target.open("w", encoding="utf-8") as file:
            for key in sorted(unique):
                row = unique[key]
                if not several:
                    del row["loader"]
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        for part in parts:
            part.unlink()
        print(f"{len(unique)} rows written to {self._target}")


def _rows(prediction: Any) -> list[dict[str, Any]]:
    if not isinstance(prediction, dict):
        raise ValueError(f"predict_step returned {type(prediction).__name__}; a mapping of columns is needed")
    columns = {name: _plain(values) for name, values in prediction.items()}
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"predict_step returned columns of different lengths: {lengths}")
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _plain(values: Any) -> list[Any]:
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        return (values.float() if values.is_floating_point() else values).tolist()
    return list(values)
