"""On steps where a callback has nothing to do, the model runs once, and nothing is logged or written."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest

from lit_align.callbacks import (
    ExportHF,
    GenerationSamples,
    KLTracker,
    MergeAdapters,
    MergeModels,
    Sentinel,
    SyncReference,
    Throughput,
    WeightAverage,
    WinRate,
)
from lit_align.scoring.adapters import snapshot_adapter

CALLBACKS = {
    "KLTracker": lambda: KLTracker(every_n_steps=4),
    "KLTracker, sampled": lambda: KLTracker(rows=["Hello"], every_n_steps=4, max_new_tokens=2),
    "GenerationSamples": lambda: GenerationSamples(["Hello"], 4, max_new_tokens=2, terminal=False),
    "WinRate": lambda: WinRate(["Hello"], lambda *s: [0.5], every_n_steps=4, max_new_tokens=2),
    "MergeAdapters": lambda: MergeAdapters(every_n_steps=4),
    "MergeModels": lambda: MergeModels(every_n_steps=4),
    "ExportHF": lambda: ExportHF(every_n_steps=4),
    "SyncReference": lambda: SyncReference(every_n_steps=4),
    "WeightAverage": lambda: WeightAverage(every_n_steps=4),
    "Throughput": lambda: Throughput(4),
    "Sentinel": lambda: Sentinel(4, prompts=["Hello"]),
}


class Counts(L.Callback):
    """Forward passes, and what is in the run's directory and the metrics, after each of the first steps."""

    def __init__(self, model: Any, folder: Path) -> None:
        self.passes, self.folder = 0, folder
        self.found: list[tuple[int, int, int]] = []
        model.get_base_model().model.register_forward_hook(self._count)

    def _count(self, *rest: Any) -> None:
        self.passes += 1

    def _now(self, trainer: Any) -> tuple[int, int, int]:
        return self.passes, len(list(self.folder.rglob("*"))), len(trainer.callback_metrics)

    def on_train_batch_start(self, trainer: Any, *rest: Any) -> None:
        if trainer.global_step == 1:
            self.found.append(self._now(trainer))

    def on_train_batch_end(self, trainer: Any, *rest: Any) -> None:
        if trainer.global_step == 3:
            self.found.append(self._now(trainer))


@pytest.mark.parametrize("name", CALLBACKS)
def test_silent_steps_cost_nothing(name: str, make_stranger, make_trainer, loader, tmp_path) -> None:
    module = make_stranger(lora=True)
    if name == "SyncReference":
        snapshot_adapter(module.language_model)
    counts = Counts(module.language_model, tmp_path)
    make_trainer(CALLBACKS[name](), counts, max_steps=3).fit(module, loader())
    (passes, files, metrics), (passes_later, files_later, metrics_later) = counts.found
    assert passes_later - passes == 2
    assert (files_later, metrics_later) == (files, metrics)
