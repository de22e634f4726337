"""How fast a run is, and what memory it takes."""

import sys
import time
from typing import Any

import lightning as L
import torch
from torch import Tensor

from lit_align.callbacks.learned_batch import tokens_of
from lit_align.callbacks.model_lookup import find_model
from lit_align.callbacks.reporting import log_now
from lit_align.callbacks.schedule import Schedule
from lit_align.callbacks.sharing import from_each, gather


class Throughput(L.Callback):
    """Log tokens and optimiser steps per second, and peak memory, over the steps since the last time.

    Works with any module whose batches are Forests or padded mappings. Validation and checkpoints are not
    counted as training time. On steps in between it adds a number to a sum.

    Args:
        every_n_steps: optimiser steps between two measurements.
        peak_tflops: what one device could do per second at the precision in use (312 for an A100 in bf16);
            where it is given, the share that is used (MFU) is logged, from 4 flops per weight and token and
            2 more per trained weight. Recomputed activations do not count, nor does attention.
        model: attribute that holds the model, for the MFU.
    """

    def __init__(
        self, every_n_steps: int = 10, peak_tflops: float | None = None, model: str | None = None
    ) -> None:
        if peak_tflops is not None and peak_tflops <= 0:
            raise ValueError(f"Throughput: peak_tflops is {peak_tflops}; it must be above 0")
        self._schedule = Schedule(every_n_steps, "Throughput")
        self.peak_tflops = peak_tflops
        self._model_name = model
        self._tokens: Tensor | int = 0
        self._total = 0
        self._flops_per_token = 0.0
        self._steps = 0
        self._seconds = 0.0
        self._since = 0.0
        self._trainer: Any = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._trainer = trainer
        self._schedule.start(trainer)
        if self.peak_tflops is not None:
            weights = list(find_model(pl_module, self._model_name).parameters())
            trained = sum(p.numel() for p in weights if p.requires_grad)
            self._flops_per_token = 4.0 * sum(p.numel() for p in weights) + 2.0 * trained
        self._restart(trainer)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the batch, and log where it is time."""
        # A tensor on the device is added up there: reading it would wait for the device at every step.
        self._tokens = self._tokens + tokens_of(pl_module, batch, "Throughput")
        if self._schedule.is_due(trainer):
            self._log(trainer)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop the clock."""
        self._seconds += time.perf_counter() - self._since

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Let the clock go on."""
        self._since = time.perf_counter()

    def state_dict(self) -> dict[str, Any]:
        """Tokens of the whole run, over all processes, those that are not logged yet too. Collective."""
        unlogged = 0 if self._trainer is None else sum(gather(self._trainer, [int(self._tokens)]))
        return {"tokens": self._total + unlogged}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self._total, self._tokens = state_dict["tokens"], 0

    def _log(self, trainer: Any) -> None:
        tokens = int(self._tokens)  # waits for the device, so that the clock is read after its work
        seconds = self._seconds + time.perf_counter() - self._since
        tokens = sum(gather(trainer, [tokens]))
        self._total += tokens
        # Equal on all processes, as what is logged must be: the slowest one counts.
        seconds, memory = (max(from_each(trainer, value)) for value in (seconds, _peak_memory()))
        found = {
            "tokens_per_second": tokens / seconds,
            "steps_per_second": (trainer.global_step - self._steps) / seconds,
            "peak_memory_gb": memory,
            "tokens": float(self._total),
        }
        if self.peak_tflops is not None:
            per_device = tokens / seconds / trainer.world_size
            found["mfu"] = per_device * self._flops_per_token / (self.peak_tflops * 1e12)
        log_now(trainer, {f"train/throughput/{name}": value for name, value in found.items()})
        self._restart(trainer)

    def _restart(self, trainer: Any) -> None:
        self._tokens, self._seconds, self._steps = 0, 0.0, trainer.global_step
        self._since = time.perf_counter()


def _peak_memory() -> float:
    """In units of 1e9 bytes: of the device, or else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    import resource  # not on Windows

    # Linux counts in units of 1024 bytes, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
