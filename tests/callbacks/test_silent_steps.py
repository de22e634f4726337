"""On steps where a callback has nothing to do, it computes, waits for, sends, logs and writes nothing."""

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from torch.utils._python_dispatch import TorchDispatchMode

from lit_align.callbacks import (
    ExportHF,
    GenerationSamples,
    KLTracker,
    MergeAdapters,
    MergeModels,
    RichProgress,
    Sentinel,
    SyncReference,
    Throughput,
    WeightAverage,
    WinRate,
    sharing,
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
    "RichProgress": lambda: RichProgress(seconds=1000.0),
    "Sentinel": lambda: Sentinel(4, prompts=["Hello"]),
}
#: These two count the tokens of each batch: two small operations, whose result stays on the device.
COUNTING = {"RichProgress", "Throughput"}


class Operations(TorchDispatchMode):
    """What torch is asked for, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[str(function)] += 1
        return function(*args, **kwargs or {})


class Counts(L.Callback):
    """Operations, collectives, and what is in the run's directory and the metrics, over the silent steps."""

    def __init__(self, folder: Path, operations: Operations, collectives: list[str]) -> None:
        self.folder, self.operations, self.collectives = folder, operations, collectives
        self.before: Any = None
        self.during: Counter[str] = Counter()

    def _now(self, trainer: Any) -> tuple[int, int, int]:
        return len(list(self.folder.rglob("*"))), len(trainer.callback_metrics), len(self.collectives)

    def on_train_batch_start(self, trainer: Any, *rest: Any) -> None:
        if trainer.global_step == 1:
            self.before = (self._now(trainer), Counter(self.operations.calls))

    def on_train_batch_end(self, trainer: Any, *rest: Any) -> None:
        if trainer.global_step == 3:
            found, calls = self.before
            assert self._now(trainer) == found
            self.during = self.operations.calls - calls


@pytest.mark.parametrize("name", CALLBACKS)
def test_silent_steps_cost_nothing(
    name: str, make_stranger, make_trainer, loader, tmp_path, monkeypatch
) -> None:
    collectives: list[str] = []

    def counted(collective: Any) -> Any:
        def call(*arguments: Any) -> Any:
            collectives.append(collective.__name__)
            return collective(*arguments)

        return call

    for collective in (sharing.gather, sharing.from_each):
        for module in [m for m in sys.modules.values() if m.__name__.startswith("lit_align.callbacks.")]:
            if getattr(module, collective.__name__, None) is collective:
                monkeypatch.setattr(module, collective.__name__, counted(collective))

    def during(*callbacks: Any) -> Counter[str]:
        module = make_stranger(lora=True)
        if name == "SyncReference":
            snapshot_adapter(module.language_model)
        with Operations() as operations:
            counts = Counts(tmp_path, operations, collectives)
            bar = any(isinstance(callback, RichProgress) for callback in callbacks)
            trainer = make_trainer(*callbacks, counts, max_steps=3, enable_progress_bar=bar)
            barrier = trainer.strategy.barrier
            monkeypatch.setattr(
                trainer.strategy, "barrier", lambda *a: collectives.append("barrier") or barrier(*a)
            )
            trainer.fit(module, loader())
        return counts.during

    alone, beside = during(), during(CALLBACKS[name]())
    assert sum(alone.values()) > 100
    more = beside - alone
    if name in COUNTING:
        # For each of the two batches; the first number that is added to is no tensor.
        assert set(more) <= {"aten.sum.default", "aten.add.Tensor"}
        assert sum(more.values()) <= 4
    else:
        assert more == Counter()
