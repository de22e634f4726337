"""Asked to stop, a run saves where nothing is half done, and goes."""

import logging
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

from lit_align.runtime.position import at_step_boundary
from lit_align.runtime.signals import StopSignals

logger = logging.getLogger(__name__)

# In this order: of what the processes want, the most is done.
_NOTHING, _SAVE, _STOP, _REQUEUE = 0, 1, 2, 3


class Preempted(SystemExit):
    """The run was asked to stop, and saved; the process ends with status 143."""


class Preemption(L.Callback):
    """On SIGTERM or SIGINT, save at the next optimiser step and exit with status 143.

    The processes of a run agree at each step, so that one signal to one of them is enough and all save
    the same step; accumulated gradients are never cut off. The checkpoint is ``last-preempted.ckpt``
    beside the others, so both ``--ckpt_path last`` of ``lit-align`` and Lightning's own find it. A
    second SIGINT stops at once. A long validation is interrupted too where there is one process.

    Under SLURM the signal that announces the end of the time (``#SBATCH --signal=SIGUSR1@120``; any that
    ``SLURMEnvironment(requeue_signal=...)`` names) saves the same way and then has the job requeued, unless
    ``SLURMEnvironment(auto_requeue=False)`` is given. A requeued job begins again with its command, so let
    that say ``--ckpt_path last``.

    Args:
        save_file: when this file appears, save, remove it, and go on.
        every_n_steps: optimiser steps between two agreements of several processes, each of which costs
            one small collective.
    """

    def __init__(self, save_file: str | Path | None = None, every_n_steps: int = 1) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps is {every_n_steps}; it is at least 1")
        self.save_file = Path(save_file) if save_file is not None else None
        self.every_n_steps = every_n_steps
        self._signals = StopSignals()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the signals over from Lightning, whose handlers save and speak to other processes at once."""
        environment = trainer._accelerator_connector.cluster_environment
        requeues = isinstance(environment, SLURMEnvironment) and environment.auto_requeue
        announced = getattr(environment, "requeue_signal", None) or signal.SIGUSR1
        self._signals.install(announced if requeues else None)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Agree, save, stop."""
        if at_step_boundary(trainer) and trainer.global_step % self.every_n_steps == 0:
            self._act(trainer, self._agreed(trainer))

    def on_validation_batch_end(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        """Do not wait for the end of a long validation; several processes may differ in their batches."""
        training = trainer.state.fn == "fit" and not trainer.sanity_checking
        if training and trainer.world_size == 1 and at_step_boundary(trainer):
            self._act(trainer, self._wanted(trainer))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Give the signals back; one that came after the last step ends the process after all is saved."""
        self._signals.restore()
        if self._signals.received is not None:
            logger.warning("%s came after the last step: the run is complete", self._signals.received.name)

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Give the signals back."""
        self._signals.restore()

    def _wanted(self, trainer: L.Trainer) -> int:
        if self._signals.received is not None:
            return _REQUEUE if self._signals.received == self._signals.requeue else _STOP
        if self.save_file is not None and trainer.is_global_zero and self.save_file.exists():
            return _SAVE
        return _NOTHING

    def _agreed(self, trainer: L.Trainer) -> int:
        wanted = self._wanted(trainer)
        if trainer.world_size == 1:
            return wanted
        flag = torch.tensor(wanted, device=trainer.strategy.root_device)
        return int(trainer.strategy.reduce(flag, reduce_op="max"))

    def _act(self, trainer: L.Trainer, wanted: int) -> None:
        if wanted == _NOTHING:
            return
        path = self._directory(trainer) / (
            "last-requested.ckpt" if wanted == _SAVE else "last-preempted.ckpt"
        )
        trainer.save_checkpoint(path)
        if trainer.is_global_zero:
            logger.warning("saved %s after step %d", path, trainer.global_step)
        if wanted == _SAVE:
            if trainer.is_global_zero and self.save_file is not None:
                self.save_file.unlink(missing_ok=True)
            return
        if wanted == _REQUEUE and trainer.is_global_zero:
            requeue_job()
        raise Preempted(_exit_status(trainer))

    def _directory(self, trainer: L.Trainer) -> Path:
        found = getattr(trainer.checkpoint_callback, "dirpath", None)
        return Path(found) if found else Path(trainer.default_root_dir) / "checkpoints"


def requeue_job() -> None:
    """Have SLURM put this job (or this task of an array) into the queue again; it may end this process."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ.get("SLURM_JOB_ID", "")
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
    except OSError as error:
        logger.warning("job %s could not be requeued: %s; submit it again", job, error)
        return
    if done.returncode:
        logger.warning("job %s could not be requeued: %s; submit it again", job, done.stderr.strip())
    else:
        logger.warning("job %s is requeued", job)


def _exit_status(trainer: L.Trainer) -> int:
    # Process zero kills all others, and itself, when one that it has started ends with another status than 0.
    started_by_zero = isinstance(trainer._accelerator_connector.cluster_environment, LightningEnvironment)
    return 0 if started_by_zero and trainer.local_rank != 0 else 143
