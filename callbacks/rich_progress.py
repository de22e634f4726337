"""Progress as a live panel in a terminal: rewards, KL, tokens per second, time left, and the last sample."""

import logging
import sys
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar

from lit_align.callbacks.progress_numbers import Pace, clock, last_sample, shown_metrics, total_steps
from lit_align.callbacks.sample_table import printable
from lit_align.runtime.data_place import data_place


class RichProgress(ProgressBar):
    """Show how training goes, in place of Lightning's progress bar; what ``lit-align fit`` shows.

    In a terminal it is a panel that redraws itself: steps, time left, tokens per second, the metrics that
    tell most (loss, rewards, KL, entropy, lengths), and the end of the last sample that was learned from.
    Where there is no terminal, the same numbers are plain lines, every few seconds at most. Works with any
    module; what it reads is what was logged.

    Args:
        seconds: least time between two plain lines.
        redraws_per_second: of the panel, at most; between two of them a step costs a look at the clock.
        sample_length: characters of prompt and completion that are shown; 0 leaves the sample out.
        metrics: lines of metrics at most.
    """

    def __init__(
        self,
        seconds: float = 10.0,
        redraws_per_second: float = 2.0,
        sample_length: int = 300,
        metrics: int = 12,
    ) -> None:
        super().__init__()
        if redraws_per_second <= 0 or sample_length < 0 or metrics < 1:
            raise ValueError(
                "RichProgress: redraws_per_second must be above 0, sample_length at least 0 and metrics at "
                f"least 1; got {redraws_per_second}, {sample_length} and {metrics}"
            )
        self.seconds, self.redraws_per_second = seconds, redraws_per_second
        self.sample_length, self.metrics = sample_length, metrics
        self._enabled = True
        self._live: Any = None
        self._streams: list[tuple[logging.StreamHandler[Any], Any]] = []
        self._pace: Pace | None = None
        self._drawn = 0.0
        self._doing = "training"
        self._sample: tuple[str, str] | None = None

    @property
    def is_enabled(self) -> bool:
        """Whether this process shows anything; ``LightningModule.print`` asks."""
        return self._enabled

    def disable(self) -> None:
        """Show nothing: another process does."""
        self._enabled = False

    def enable(self) -> None:
        """Show."""
        self._enabled = True

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Take the place of the trainer's bar.

        Raises:
            ValueError: the trainer has another bar; one of ``pytorch_lightning`` does not know this for one,
                and has its own by default.
        """
        super().setup(trainer, pl_module, stage)
        bar = trainer.progress_bar_callback
        if bar is not None and bar is not self:
            raise ValueError(
                f"RichProgress: this trainer shows a {type(bar).__name__} already; give it "
                "enable_progress_bar=False"
            )
        self._enabled = trainer.is_global_zero

    # -- hooks -------------------------------------------------------------------------------------

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock, and the panel where there is a terminal."""
        self._pace, self._drawn, self._sample = Pace(trainer), time.monotonic(), None
        if not self._enabled:
            return
        from rich.console import Console
        from rich.live import Live

        console = Console(file=sys.stdout)
        if console.is_terminal:
            self._live = Live(console=console, auto_refresh=False, transient=False)
            before = sys.stderr
            self._live.start()
            # Loggers hold on to the stream of their start, and would write into the middle of the panel.
            for handler in _handlers():
                if handler.stream is before:
                    self._streams.append((handler, handler.setStream(sys.stderr)))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the batch, and show where it is time."""
        if not self._enabled:
            return
        assert self._pace is not None
        self._pace.count(pl_module, batch)
        wait = self.seconds if self._live is None else 1 / self.redraws_per_second
        if time.monotonic() - self._drawn >= wait:
            if self.sample_length:
                self._sample = last_sample(trainer, pl_module, batch)
            self._show(trainer, pl_module)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say so."""
        if self._pace is not None:
            self._pace.pause()
            self._doing = "validating"
            self._redraw(trainer, pl_module)

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count validation batches in the panel, where it is time."""
        if self._pace is None or self._live is None:
            return
        if time.monotonic() - self._drawn >= 1 / self.redraws_per_second:
            self._drawn = time.monotonic()
            batches: Any = trainer.num_val_batches
            self._doing = f"validating {batch_idx + 1}/{batches[dataloader_idx]}"
            self._redraw(trainer, pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Go on."""
        if self._pace is not None:
            self._pace.resume()
            self._doing = "training"
            self._redraw(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show the last state."""
        if self._enabled and self._pace is not None:
            self._doing = "done"
            self._show(trainer, pl_module)
        self._stop()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Give the terminal back."""
        self._stop()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Give the terminal back."""
        self._stop()

    def print(self, *args: Any, **kwargs: Any) -> None:
        """What a module prints goes above the panel, or between the lines."""
        # The panel takes what goes to the standard output and puts it above itself.
        if self._enabled:
            print(*args, **kwargs)

    # -- what is shown -----------------------------------------------------------------------------

    def _show(self, trainer: Any, pl_module: Any) -> None:
        self._drawn = time.monotonic()
        if self._live is not None:
            self._redraw(trainer, pl_module)
            return
        values = "  ".join(f"{k} {v:.4g}" for k, v in self._metrics(trainer, pl_module).items())
        print(f"{self._headline(trainer)}  {values}".rstrip(), file=sys.stdout, flush=True)

    def _redraw(self, trainer: Any, pl_module: Any) -> None:
        if self._live is not None:
            self._live.update(self._panel(trainer, pl_module), refresh=True)

    def _stop(self) -> None:
        live, self._live = self._live, None
        while self._streams:
            handler, stream = self._streams.pop()
            handler.setStream(stream)
        if live is not None:
            live.stop()
        self._pace = None

    def _metrics(self, trainer: Any, pl_module: Any) -> dict[str, float]:
        found = shown_metrics(trainer, self.get_metrics(trainer, pl_module))
        return dict(list(found.items())[: self.metrics])

    def _headline(self, trainer: Any) -> str:
        assert self._pace is not None
        total, left = total_steps(trainer), self._pace.seconds_left(trainer)
        speed = self._pace.tokens_per_second(data_place(trainer).size)
        parts = [
            f"step {trainer.global_step}/{total}" if total is not None else f"step {trainer.global_step}",
            clock(self._pace.seconds()),
            *([f"{clock(left)} left"] if left is not None and self._doing != "done" else []),
            *([f"{speed:,.0f} tokens/s"] if speed is not None else []),
        ]
        return "  ".join(parts)

    def _panel(self, trainer: Any, pl_module: Any) -> Any:
        from rich.console import Group
        from rich.panel import Panel
        from rich.progress_bar import ProgressBar as Bar
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 2))
        for name, value in self._metrics(trainer, pl_module).items():
            table.add_row(Text(name), Text(f"{value:.4g}"))
        total = total_steps(trainer)
        bar = [Bar(total=total, completed=trainer.global_step)] if total is not None else []
        parts: list[Any] = [Text(self._headline(trainer)), *bar, table]
        if self._sample is not None:
            asked, answered = (printable(text, self.sample_length) for text in self._sample)
            # Text, not markup: a completion may look like one.
            parts.append(Panel(Text.assemble((asked, "dim"), answered), title="last sample"))
        return Panel(Group(*parts), title=self._doing)


def _handlers() -> list[logging.StreamHandler[Any]]:
    """Those of the root and of Lightning that write to a stream."""
    names = (None, "lightning", "lightning.pytorch", "lightning.fabric", "pytorch_lightning")
    handlers = [handler for name in names for handler in logging.getLogger(name).handlers]
    return [handler for handler in handlers if isinstance(handler, logging.StreamHandler)]
