"""Progress as lines of text, for output that is not a terminal."""

import sys
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar

from lit_align.callbacks.progress_numbers import total_steps


class ProgressLines(ProgressBar):
    """Print the step, the time and the metrics of the progress bar, every few seconds at most.

    Args:
        seconds: least time between two lines.
    """

    def __init__(self, seconds: float = 10.0) -> None:
        super().__init__()
        self.seconds = seconds
        self._started = 0.0
        self._printed = 0.0
        self._enabled = True

    @property
    def is_enabled(self) -> bool:
        """Whether this process prints; ``LightningModule.print`` asks."""
        return self._enabled

    def disable(self) -> None:
        """Print nothing: another process does."""
        self._enabled = False

    def enable(self) -> None:
        """Print."""
        self._enabled = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._started = self._printed = time.monotonic()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Print a line where it is time for one."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if time.monotonic() - self._printed >= self.seconds:
            self._line(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the last state."""
        self._line(trainer, pl_module)

    def print(self, *args: Any, **kwargs: Any) -> None:
        """What a module prints goes between the lines."""
        if self._enabled:
            print(*args, **kwargs)

    def _line(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._printed = time.monotonic()
        if not self._enabled:
            return
        metrics = {k: v for k, v in self.get_metrics(trainer, pl_module).items() if k != "v_num"}
        values = "  ".join(
            f"{k} {v:.4g}" if isinstance(v, (int, float)) else f"{k} {v}" for k, v in metrics.items()
        )
        total, seconds = total_steps(trainer), self._printed - self._started
        step = f"step {trainer.global_step}" + (f"/{total}" if total is not None else "")
        print(f"{step}  {seconds:.0f} s  {values}", file=sys.stdout, flush=True)
