"""What one optimiser step costs on this machine: SFT, RewardModel and DPO through Lightning's Trainer.

    python benchmarks/steps.py [--steps 20] [--threads 1]

The shipped model and data, batches of 16 rows, float32. CPU seconds are of the whole process, so that other
load on the machine does not count. Memory is the growth of what the process holds (resident set) from the end
of the warm-up to the end of the run, per step: more steps tell a leak from a pool that is still filling.
"""

import argparse
import logging
import os
import platform
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import lightning as L
import torch
from rich.console import Console
from rich.table import Table

from lit_align import DPO, SFT, RewardModel
from lit_align.datamodules import PreferenceDataModule, SupervisedDataModule

WARM_UP = 3
MODEL = "lit-align/tiny"


@dataclass
class Cost:  # of one step
    name: str
    cpu_seconds: float
    tokens: float
    kilobytes_grown: float


class Meter(L.Callback):
    """Clock, tokens and memory between the end of the warm-up and the end of training."""

    def __init__(self) -> None:
        self.tokens = 0
        self.start: tuple[float, int] | None = None
        self.seconds = 0.0
        self.grown = 0

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.start is not None:
            self.tokens += batch.num_tokens
        elif trainer.global_step >= WARM_UP:
            self.start = (time.process_time(), resident_bytes())

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert self.start is not None
        self.seconds, self.grown = time.process_time() - self.start[0], resident_bytes() - self.start[1]


def resident_bytes() -> int:
    import psutil  # comes with accelerate, which peft requires

    return int(psutil.Process(os.getpid()).memory_info().rss)


def measure(name: str, module: L.LightningModule, data: L.LightningDataModule, steps: int) -> Cost:
    L.seed_everything(0)
    meter = Meter()
    quiet = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    trainer = L.Trainer(max_steps=WARM_UP + steps, gradient_clip_val=1.0, callbacks=[meter], **quiet)
    trainer.fit(module, data)
    return Cost(name, meter.seconds / steps, meter.tokens / steps, meter.grown / steps / 1000)


def costs(steps: int) -> list[Cost]:
    pairs = {"train": "lit-align/manners-pairs", "batch_size": 16}
    return [
        measure("SFT", SFT(MODEL), SupervisedDataModule(train="lit-align/manners-sft", batch_size=16), steps),
        measure("RewardModel", RewardModel(MODEL), PreferenceDataModule(**pairs), steps),
        measure("DPO", DPO(MODEL), PreferenceDataModule(**pairs), steps),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=20, help="optimiser steps to measure, after the warm-up")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    table = Table(
        title=f"per optimiser step, {arguments.steps} steps, {arguments.threads} thread(s)",
        title_justify="left",
    )
    for column in ("algorithm", "CPU s", "tokens", "tokens / CPU s", "memory grown, kB"):
        table.add_column(column, justify="left" if column == "algorithm" else "right")
    for cost in costs(arguments.steps):
        speed = cost.tokens / cost.cpu_seconds
        table.add_row(
            cost.name,
            f"{cost.cpu_seconds:.4f}",
            f"{cost.tokens:.0f}",
            f"{speed:,.0f}",
            f"{cost.kilobytes_grown:.1f}",
        )
    console = Console(width=100)
    console.print(table)
    names = ("lit-align", "torch", "lightning", "transformers")
    packages = ", ".join(f"{name} {version(name)}" for name in names)
    console.print(f"{packages}; Python {platform.python_version()}, {platform.machine()}", soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
