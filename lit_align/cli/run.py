"""What the command line adds to a trainer, so that a run's files lie in one directory."""

import importlib.util
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
from lightning.fabric.plugins.io import CheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from lit_align.callbacks.exact_resume import ExactResume
from lit_align.callbacks.export_hf import ExportHF
from lit_align.callbacks.nan_guard import NanGuard
from lit_align.callbacks.prediction_writer import PredictionWriter
from lit_align.callbacks.preemption import Preemption
from lit_align.callbacks.progress_lines import ProgressLines
from lit_align.callbacks.rich_progress import RichProgress
from lit_align.cli import report
from lit_align.runtime.checkpoint_io import AtomicCheckpointIO
from lit_align.runtime.run_directory import start_run

if TYPE_CHECKING:
    from lit_align.cli.train import AlignCLI

_log = logging.getLogger(__name__)


class Run:
    """One run of a command: its directory, and the trainer's arguments that lead there.

    Args:
        cli: the command line, parsed.
        command: ``fit``, ``validate``, ``test`` or ``predict``.
        config: the trainer's arguments as configured; what is set there is left alone.
    """

    def __init__(self, cli: "AlignCLI", command: str, config: dict[str, Any]) -> None:
        self.cli = cli
        self.command = command
        self.config = dict(config)
        self.callbacks = _as_list(self.config.get("callbacks"))
        self.directory: Path | None = None
        trial = self.config.get("fast_dev_run") or self.config.get("barebones")
        if command in ("fit", "predict") and not trial:
            self.directory = start_run(self.config.get("default_root_dir") or ".", cli.run_name)

    def trainer_arguments(self) -> dict[str, Any]:
        """The trainer's arguments, with what the configuration left open."""
        if self.directory is not None:
            # Whatever falls back on the trainer's directory falls into the run's.
            self.config["default_root_dir"] = str(self.directory)
        if self.config.get("logger") in (None, True):
            self.config["logger"] = self._loggers()
        if self.config.get("enable_progress_bar") is not False and not self.config.get("barebones"):
            self._add(ProgressBar, self._progress_bar)
        if self.directory is not None and self.command == "fit":
            self._add(ExactResume, ExactResume)
            self._add(NanGuard, NanGuard)
            if self.config.get("enable_checkpointing") is not False:
                self._add(Preemption, lambda: Preemption(Path(str(self.directory)) / "SAVE"))
                self._add(ModelCheckpoint, self._checkpoints)
            self._add(ExportHF, ExportHF)
            self.callbacks.append(_SaveConfig(self.cli))
        if self.directory is not None and self.command == "predict":
            self._add(PredictionWriter, PredictionWriter)
            self.callbacks.append(_SaveConfig(self.cli))
        plugins = _as_list(self.config.get("plugins"))
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            self.config["plugins"] = [*plugins, AtomicCheckpointIO()]
        return {**self.config, "callbacks": self.callbacks}

    def _add(self, kind: type, make: Any) -> None:
        if not any(isinstance(callback, kind) for callback in self.callbacks):
            self.callbacks.append(make())

    def _loggers(self) -> list[Logger] | bool:
        if self.directory is None or self.command != "fit":
            return False
        loggers: list[Logger] = [CSVLogger(self.directory, name="", version="")]
        if importlib.util.find_spec("tensorboard") is not None:
            loggers.append(TensorBoardLogger(self.directory, name="", version="", default_hp_metric=False))
        elif getattr(rank_zero_only, "rank", 0) == 0:
            print("tensorboard is not installed: metrics go to metrics.csv alone", file=sys.stderr)
        return loggers

    def _checkpoints(self) -> ModelCheckpoint:
        assert self.directory is not None
        return ModelCheckpoint(
            self.directory / "checkpoints",
            filename="step-{step}",
            auto_insert_metric_name=False,
            save_last=True,
        )

    def _progress_bar(self) -> ProgressBar:
        if self.command == "fit":
            return RichProgress()
        if sys.stdout.isatty():
            from lightning.pytorch.callbacks import RichProgressBar

            return RichProgressBar()
        # A bar that redraws itself is noise in a file; lines are not.
        return ProgressLines()


class _SaveConfig(L.Callback):
    """Write the whole configuration, defaults included, beside the run's results."""

    def __init__(self, cli: "AlignCLI") -> None:
        self.cli = cli

    @rank_zero_only
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Save before anything can fail, once."""
        config = self.cli.config.get(str(self.cli.subcommand), self.cli.config)
        path = Path(trainer.default_root_dir) / report.CONFIG_FILE
        self.cli._parser(self.cli.subcommand).save(config, str(path), skip_unset=False, overwrite=True)


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]
