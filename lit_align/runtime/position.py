"""Where a run is between two optimiser steps, in plain numbers, and how Lightning's loops are put there."""

from dataclasses import asdict, dataclass
from typing import Any

import lightning as L


@dataclass(frozen=True)
class Position:
    """A place between two batches at which nothing is half done.

    Attributes:
        epoch: the epoch to go on with.
        rows: rows of it that all processes together are through with.
        batches: batches of it that each process has seen.
        repeats: how often the batch behind these rows has been seen, where batches are repeated.
    """

    epoch: int = 0
    rows: int = 0
    batches: int = 0
    repeats: int = 0

    def state(self) -> dict[str, int]:
        """Plain data for a checkpoint."""
        return asdict(self)


def completed_batches(trainer: L.Trainer) -> int:
    """Batches of this epoch whose gradients are in the weights.

    A window of accumulation that is still open does not count: its gradients are in no checkpoint, so it
    has to be done again from its start.
    """
    done = _processed(trainer)
    if not at_step_boundary(trainer):
        done -= done % trainer.accumulate_grad_batches
    return done


def at_step_boundary(trainer: L.Trainer) -> bool:
    """Whether every batch that was processed is in the weights, seen from a hook after a batch."""
    done = _processed(trainer)
    return done % trainer.accumulate_grad_batches == 0 or epoch_is_over(trainer)


def epoch_is_over(trainer: L.Trainer) -> bool:
    """Whether all batches of the epoch are processed."""
    progress = trainer.fit_loop.epoch_loop.batch_progress
    done = _processed(trainer)
    # A stream tells by the flag alone that a batch was its last.
    ended = progress.is_last_batch and done == progress.current.ready
    return done > 0 and (done >= trainer.num_training_batches or ended)


def rewind_loops(loops: dict[str, Any], position: Position) -> None:
    """Rewrite a checkpoint's state of the fit loop, in place, to stand exactly at a position.

    Lightning saves its counters as they are in the middle of whatever hook saved, and from some of these
    states it goes on wrongly: with ``max_steps`` it counts an epoch twice when the save was at an epoch's
    end, and after a resumed epoch it loses one. From the two states written here it goes on rightly.

    Args:
        loops: ``checkpoint["loops"]["fit_loop"]``.
        position: where to go on.
    """
    epoch, batches = position.epoch, position.batches
    saved = loops["epoch_loop.batch_progress"]
    now, total = saved["current"], saved["total"]
    inside = batches > 0
    undone = now["processed"] - batches if inside else 0
    seen = total["processed"] - undone
    # Lightning counts the step of this batch for its loggers after the hook that usually saves.
    late = now["completed"] < now["processed"] and not undone
    stepped = loops["epoch_loop.state_dict"].get("_batches_that_stepped", 0) + int(late)
    if inside:
        # As saved by a callback after a batch: Lightning closes that batch itself, and counts its step.
        started = epoch + 1
        batch = {"ready": batches, "started": batches, "processed": batches, "completed": batches - 1}
        overall = {"ready": seen, "started": seen, "processed": seen, "completed": seen - 1}
        stepped -= 1
    else:
        started = epoch
        batch = dict.fromkeys(now, 0)
        overall = dict.fromkeys(total, seen)
    ends = {"ready": started, "started": started, "processed": epoch, "completed": epoch}
    loops["epoch_progress"] = {"total": dict(ends), "current": dict(ends)}
    loops["epoch_loop.batch_progress"] = {"total": overall, "current": batch, "is_last_batch": False}
    loops["epoch_loop.state_dict"]["_batches_that_stepped"] = stepped
    # A validation that was cut off is not taken up in the middle.
    val = loops.get("epoch_loop.val_loop.batch_progress")
    if val is not None:
        for part in ("total", "current"):
            val[part] = dict.fromkeys(val[part], 0)
        val["is_last_batch"] = False


def enter_position(trainer: L.Trainer, batches: int) -> None:
    """Tell the restored loops how many batches of the epoch each of *this* number of processes has seen.

    To be called in ``on_train_start`` of a run that goes on.
    """
    loop = trainer.fit_loop.epoch_loop
    if batches == 0:
        # Otherwise Lightning takes the epoch that begins for one that it is in the middle of, and
        # spends a turn on the validation of batch -1.
        loop.restarting = False
        return
    current: Any = loop.batch_progress.current
    current.ready = current.started = current.processed = batches
    current.completed = batches - 1


def _processed(trainer: L.Trainer) -> int:
    current: Any = trainer.fit_loop.epoch_loop.batch_progress.current
    return int(current.processed)
