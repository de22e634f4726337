"""SFT of the shipped model with data module and callbacks, on one process or with shared products.

Arguments: ``KIND PROCESSES STEPS FOLDER [CHECKPOINT]``, the kind being ``full`` or ``lora``. Process zero
writes the metrics of each step, and the callbacks their files; at the end there is ``end.ckpt``.
"""

import json
from pathlib import Path
from typing import Any

import lightning as L
import torch

from lit_align import SFT
from lit_align.algorithms.optim import OptimConfig
from lit_align.callbacks import (
    ExactResume,
    ExportHF,
    GenerationSamples,
    KLTracker,
    PredictionWriter,
    Throughput,
    WeightAverage,
)
from lit_align.datamodules import SupervisedDataModule
from lit_align.runtime.checkpoint_io import AtomicCheckpointIO
from lit_align.runtime.sharded_strategy import ShardedStrategy

#: They tell of the clock and the machine.
NOT_OF_THE_RUN = ("per_second", "memory")
ROWS = [
    {"prompt": "Hello there", "completion": "Good day"},
    {"prompt": "Please", "completion": "of course"},
    {"prompt": "A", "completion": "B"},
]


class Keep(L.Callback):
    def __init__(self, out: Path) -> None:
        self.out = out
        self.steps: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Any, *rest: Any) -> None:
        found = {k: float(v) for k, v in trainer.callback_metrics.items()}
        self.steps.append({k: v for k, v in found.items() if not any(part in k for part in NOT_OF_THE_RUN)})

    def on_train_end(self, trainer: Any, module: Any) -> None:
        if trainer.is_global_zero:
            self.out.write_text(json.dumps(self.steps))


class Described(SFT):
    """Predicts what it saw: of each row its number, and how many tokens it has."""

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, list[int]]:
        return {"row": list(batch.rows), "tokens": list(batch.completion_lengths)}


def main(kind: str, processes: int, steps: int, folder: Path, checkpoint: str | None) -> None:
    torch.set_num_threads(1)
    L.seed_everything(3, verbose=False)
    policy: dict[str, Any] = {"path": "lit-align/tiny"}
    if kind == "lora":
        policy["lora"] = {"r": 4}
    module = Described(policy, lr=1e-2, optim=OptimConfig("torch.optim.SGD", schedule="constant"))
    samples = GenerationSamples(
        ["Hello there", "What is it?", "Please"], every_n_steps=2, temperature=0.7, max_new_tokens=8
    )
    # Two processes read the same rows.
    shares = max(1, processes // 2)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=processes,
        strategy=ShardedStrategy(shares, 2) if processes > 1 else "auto",
        max_steps=steps,
        log_every_n_steps=1,
        val_check_interval=2,
        check_val_every_n_epoch=None,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        plugins=[AtomicCheckpointIO()],
        callbacks=[
            samples,
            KLTracker(rows=ROWS, every_n_steps=2),
            WeightAverage(),
            Throughput(every_n_steps=1),
            ExactResume(seed=1),
            ExportHF(folder / "export"),
            PredictionWriter(folder / "predictions.jsonl"),
            Keep(folder / "metrics.json"),
        ],
    )
    data = SupervisedDataModule("lit-align/manners-sft", batch_size=8 // shares, limit=32, cache=False)
    trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
    trainer.save_checkpoint(folder / "end.ckpt")
    trainer.predict(module, data.val_dataloader())


def run(arguments: list[str]) -> None:
    kind, processes, steps, folder, *checkpoint = arguments
    main(kind, int(processes), int(steps), Path(folder), checkpoint[0] if checkpoint else None)
