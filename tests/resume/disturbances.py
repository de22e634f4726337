"""What happens to the runs of these tests: a kill, a signal, a NaN, a draw from a generator."""

import json
import multiprocessing
import os
import signal
import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch

# Tests are no package, and the doctest collector imports scripts from elsewhere.
sys.path.insert(0, str(Path(__file__).parent))
from subjects import worth


class Watch(L.Callback):
    """Note each batch; at one, kill the process or send it a signal."""

    def __init__(self, path: Path, spec: dict[str, Any]) -> None:
        self.path, self.kill_at, self.count = path, spec.get("kill_at"), 0
        self.signals = {int(at): getattr(signal, name) for at, name in spec.get("signals", {}).items()}
        self.touch_at = spec.get("touch_at")
        self.kill_worker_at = spec.get("kill_worker_at")

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        self.count += 1
        if self.kill_at is not None and self.count > self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.count in self.signals and trainer.global_rank == 0:
            os.kill(os.getpid(), self.signals[self.count])
        if self.count == self.touch_at:
            (self.path.parent / "SAVE").touch()
        if self.count == self.kill_worker_at:
            worker = multiprocessing.active_children()[0]
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGKILL)
        seen = list(batch.rows) if hasattr(batch, "rows") else [int(v) for v in batch[:, 0].tolist()]
        with self.path.open("a") as file:
            file.write(json.dumps([trainer.current_epoch, batch_idx, seen, trainer.global_step]) + "\n")

    def on_validation_batch_start(self, *_: Any) -> None:
        torch.rand(7)


class Poison(L.Callback):
    """Put a NaN into the loss, the states, a gradient, a weight or a reward at one micro-batch."""

    def __init__(self, what: str, at: int) -> None:
        self.what, self.at, self.count = what, at, 0

    def on_train_batch_start(self, trainer: Any, module: Any, *_: Any) -> None:
        self.count += 1
        if self.what == "reward" and self.count == self.at:
            worth.append(float("inf"))
        if self.what == "states" and self.count == self.at:
            embeddings = module.policy.model.get_input_embeddings()
            embeddings.register_forward_hook(lambda _, inputs, states: states * torch.nan)
        if self.what == "loss" and self.count == self.at:
            step = module.training_step
            module.training_step = lambda *a: (module.__dict__.pop("training_step"), step(*a) * torch.nan)[1]

    def on_after_backward(self, trainer: Any, module: Any) -> None:
        if self.what == "gradient" and self.count == self.at:
            next(p for p in module.parameters() if p.grad is not None).grad.view(-1)[0] = torch.inf

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        if self.what == "weights" and self.count == self.at:
            next(p for p in module.parameters() if p.requires_grad).data.view(-1)[-1] = torch.nan


class Disturb(L.Callback):
    """Draw from the global generator where nobody expects it."""

    def on_train_batch_end(self, *_: Any) -> None:
        torch.rand(3)
