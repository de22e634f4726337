"""Stop at the step where the numbers stop being numbers, and name the rows."""

from typing import Any, NoReturn

import lightning as L
import torch
from torch import Tensor
from torch.optim import Optimizer

from lit_align.runtime.health import all_finite, gradients, not_finite, total_norm
from lit_align.runtime.position import at_step_boundary


class NonFinite(RuntimeError):
    """The loss, a gradient or a weight is NaN or infinite.

    Attributes:
        what: ``loss``, ``gradient`` or ``weights``.
        step: the optimiser step it happened in, counted from 1.
        rows: row numbers of the batches it came from, as far as batches tell them.
    """

    def __init__(self, what: str, step: int, rows: list[int], detail: str) -> None:
        self.what, self.step, self.rows = what, step, rows
        told = f"rows {rows}" if rows else "batches that do not tell their rows"
        super().__init__(
            f"{what} not finite at optimiser step {step}, from {told}{detail}. No checkpoint was written of "
            "it. Look at these rows; a lower lr, gradient_clip_val, or another precision may help"
        )


class NanGuard(L.Callback):
    """Stop the run at the first step whose loss, gradients or weights are not finite.

    The losses of the window and the gradients are looked at before the optimiser uses them, the weights
    after it, before any checkpoint is written: one pass over each, and one wait for the device each.
    Where a precision scales the loss and skips steps by itself (16-mixed), gradients are left to it.
    DeepSpeed looks at them itself, and the step that it leaves out is where the run stops.

    Batches that have ``rows`` (as those of this package) are named by them.

    Args:
        weights_every_n_steps: optimiser steps between two looks at the weights.
    """

    def __init__(self, weights_every_n_steps: int = 1) -> None:
        if weights_every_n_steps < 1:
            raise ValueError(f"weights_every_n_steps is {weights_every_n_steps}; it is at least 1")
        self.weights_every_n_steps = weights_every_n_steps
        self._window: list[tuple[Tensor, list[int]]] = []
        self._rows: list[int] = []
        self._last: list[int] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forget a window that an exception cut off."""
        self._window = []

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Remember the rows."""
        self._rows = [int(row) for row in getattr(batch, "rows", ())]

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        """Remember the loss, without waiting for it."""
        self._window.append((loss.detach().float().reshape(-1).abs().max(), self._rows))

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer
    ) -> None:
        """Look at losses and gradients."""
        window, self._window = self._window, []
        self._last = [row for _, rows in window for row in rows]
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        found = [] if scaled else gradients([p for group in optimizer.param_groups for p in group["params"]])
        numbers = torch.stack([loss for loss, _ in window] + [total_norm(found).to(pl_module.device)])
        bad_here = not bool(numbers.isfinite().all())
        if bad_here:
            # Once more exactly: the norm overflows before the numbers do.
            bad_here = not all_finite([*(loss for loss, _ in window), *found])
        if not self._anywhere(trainer, bad_here):
            return
        bad = [i for i, (loss, _) in enumerate(window) if not bool(loss.isfinite())]
        if self._anywhere(trainer, bool(bad)):
            self._stop(trainer, "loss", [row for i in bad for row in window[i][1]], "")
        named = ((n, p.grad) for n, p in pl_module.named_parameters() if p.grad is not None)
        self._stop(trainer, "gradient", self._last, _of(not_finite(named)))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the weights, after a step."""
        if at_step_boundary(trainer) and getattr(trainer.strategy, "left_step_out", False):
            self._stop(trainer, "gradient", self._last, "", done=1)
        if not at_step_boundary(trainer) or trainer.global_step % self.weights_every_n_steps:
            return
        trained = [(n, p) for n, p in pl_module.named_parameters() if p.requires_grad]
        finite = bool(total_norm(p for _, p in trained).isfinite()) or all_finite(p for _, p in trained)
        if self._anywhere(trainer, not finite):
            self._stop(trainer, "weights", self._last, _of(not_finite(trained)), done=1)

    def _anywhere(self, trainer: L.Trainer, bad: bool) -> bool:
        return trainer.strategy.reduce_boolean_decision(bad, all=False)

    def _stop(self, trainer: L.Trainer, what: str, rows: list[int], detail: str, done: int = 0) -> NoReturn:
        if trainer.world_size > 1:
            gathered: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(gathered, rows)
            rows = sorted({row for part in gathered for row in part})
        raise NonFinite(what, trainer.global_step + 1 - done, rows, detail)


def _of(names: list[str]) -> str:
    return f" (in {', '.join(names)})" if names else ""
