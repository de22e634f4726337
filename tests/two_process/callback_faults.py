"""What goes wrong on process 1 alone, beside callbacks; each process writes what became of it.

Arguments: ``FAULT PROCESSES OUT``, with ``masked`` (labels), ``judge`` or ``check`` (by process zero).
"""

import json
from pathlib import Path
from typing import Any

import lightning as L
import torch
from callback_runs import PROMPTS, Stranger
from torch import Tensor
from torch.utils.data import DataLoader

from lit_align.callbacks import Sentinel, Throughput, WinRate
from lit_align.models.tokenizers import load_tokenizer


class Labelled(Stranger):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss: Tensor = self.net(input_ids=batch["input_ids"], labels=batch["input_ids"]).loss
        return loss


class Judge:
    """Fails on one process, in a verdict or before training."""

    def __init__(self, fault: str, rank: int) -> None:
        self.fault, self.rank = fault, rank

    def __call__(self, prompts: Any, firsts: Any, seconds: Any) -> list[float]:
        if self.fault == "judge" and self.rank == 1:
            raise OSError("the endpoint is down")
        return [1.0] * len(prompts)

    def check(self) -> None:
        if self.fault == "check":
            raise OSError("the endpoint is down")


def main(fault: str, processes: int, out: Path) -> None:
    torch.set_num_threads(1)
    sentinel = Sentinel(1, stop=True)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=processes,
        strategy="ddp",
        max_steps=4,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=out,
        use_distributed_sampler=False,
        log_every_n_steps=1,
    )
    rank = trainer.global_rank
    win = WinRate(PROMPTS, Judge(fault, rank), every_n_steps=2, max_new_tokens=2, batch_size=1)
    trainer.callbacks += [Throughput(1), sentinel if fault == "masked" else win]
    ids = torch.arange(5, 11)
    masked = fault == "masked" and rank == 1
    labels = torch.full_like(ids, -100) if masked else ids
    rows: Any = [{"input_ids": ids, "labels": labels}] * 8
    module = Labelled(load_tokenizer("lit-align/tiny"), lora=False)
    error = ""
    try:
        trainer.fit(module, DataLoader(rows, 2))
    except Exception as raised:
        error = f"{type(raised).__name__}: {raised}"
    found = {"step": trainer.global_step, "messages": list(sentinel.messages), "error": error}
    (out / f"{rank}.json").write_text(json.dumps(found))


def run(arguments: list[str]) -> None:
    main(arguments[0], int(arguments[1]), Path(arguments[2]))
