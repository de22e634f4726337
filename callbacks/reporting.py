"""Numbers and texts from a callback to all loggers of a trainer, whichever they are."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def log_now(trainer: Any, metrics: Mapping[str, float]) -> None:
    """Write metrics of the present training step, on whatever step it is.

    ``self.log`` writes only on the steps that ``log_every_n_steps`` divides, so a measurement on another step
    would be lost. Other callbacks find the values in ``trainer.callback_metrics``. Call it on all processes,
    with equal values.

    Args:
        trainer: of lightning or of pytorch_lightning.
        metrics: by their names.
    """
    trainer.callback_metrics.update({name: torch.tensor(float(value)) for name, value in metrics.items()})
    for logger in trainer.loggers:
        logger.log_metrics(dict(metrics), step=step_of(trainer))
        logger.save()


def log_histogram(trainer: Any, name: str, values: Tensor) -> None:
    """A histogram, where a logger knows them: TensorBoard and W&B; CSV and MLflow have no place."""
    if not trainer.is_global_zero or not values.numel():
        return
    values = values.float().cpu()
    for logger in trainer.loggers:
        if hasattr(logger.experiment, "add_histogram"):
            logger.experiment.add_histogram(name, values, step_of(trainer))
        elif type(logger).__name__ == "WandbLogger":
            import wandb

            logger.log_metrics({name: wandb.Histogram(values.tolist())}, step=step_of(trainer))


def log_table(trainer: Any, name: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table of texts: as text in TensorBoard, as a table in W&B, as a file in MLflow; CSV has no place."""
    if not trainer.is_global_zero:
        return
    step = step_of(trainer)
    for logger in trainer.loggers:
        if hasattr(logger, "log_table"):
            logger.log_table(key=name, columns=list(columns), data=[list(row) for row in rows], step=step)
        elif hasattr(logger.experiment, "add_text"):
            logger.experiment.add_text(name, markdown(columns, rows), step)
        elif hasattr(logger.experiment, "log_text") and hasattr(logger, "run_id"):
            text = markdown(columns, rows)
            logger.experiment.log_text(logger.run_id, text, f"{name}/step_{step:06d}.md")


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [list(columns), ["---"] * len(columns), *[[_cell(text) for text in row] for row in rows]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def step_of(trainer: Any) -> int:
    """The x-axis of Lightning's own ``self.log``, which counts from 0 and not with several optimisers."""
    return int(trainer.fit_loop.epoch_loop._batches_that_stepped)


def _cell(text: str) -> str:
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")
    return escaped.replace("\n", "<br>")
