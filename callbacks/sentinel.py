"""A watch over a run: says what goes wrong before the run is over."""

import warnings
from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor

from lit_align.callbacks.completions import Completer
from lit_align.callbacks.learned_batch import learned_tokens
from lit_align.callbacks.model_lookup import find_model, find_tokenizer
from lit_align.callbacks.prompts import read_rows
from lit_align.callbacks.schedule import Schedule
from lit_align.callbacks.sentinel_check import Seen
from lit_align.callbacks.sentinel_checks import CHECKS
from lit_align.callbacks.sharing import gather
from lit_align.runtime.gradients import norm_of_step, numbers

#: Completions at once.
_BATCH = 16


class Sentinel(L.Callback):
    """Warn about what ruins runs in silence, or stop them.

    Looks at what is there anyway: the loss, the batch, the gradients, and the metrics that were logged,
    under TRL's names (``entropy``, ``rewards/...``, ``kl/...``, ``completions/mean_length``) with or
    without ``train/`` before them. Steps in between cost nothing. Each check is told once. The checks, with
    the source of each threshold, are in :mod:`lit_align.callbacks.sentinel_checks` and
    :mod:`lit_align.callbacks.sentinel_rewards`.

    Args:
        every_n_steps: optimiser steps between two looks; by default the trainer's ``log_every_n_steps``.
        stop: stop the training at the first message.
        without: names of checks to leave out.
        prompts: texts or conversations that are completed at each validation, for the checks of length and
            repetition; see :func:`lit_align.callbacks.prompts.read_rows`.
        max_new_tokens: longest completion of them.
        reward: metric of the reward that is trained on.
        held_out: metric of one that is not; by default the same on the validation prompts. The two are
            compared whenever the second is new.
        model: attribute that holds the model, see :func:`lit_align.callbacks.model_lookup.find_model`.
        tokenizer: attribute that holds the tokenizer.
    """

    def __init__(
        self,
        every_n_steps: int | None = None,
        stop: bool = False,
        without: Sequence[str] = (),
        prompts: list[Any] | str | None = None,
        max_new_tokens: int = 64,
        reward: str = "train/reward",
        held_out: str = "val/reward",
        model: str | None = None,
        tokenizer: str | None = None,
    ) -> None:
        unknown = sorted(set(without) - set(CHECKS))
        if unknown:
            raise ValueError(f"Sentinel: no check {', '.join(unknown)}; there are {', '.join(CHECKS)}")
        self.stop = stop
        self.checks = [make() for name, make in CHECKS.items() if name not in without]
        #: Messages so far, by the name of the check.
        self.messages: dict[str, str] = {}
        self.max_new_tokens = max_new_tokens
        self.reward, self.held_out = reward, held_out
        self._prompts = [row.prompt for row in read_rows(prompts, "Sentinel")] if prompts is not None else []
        self._schedule = Schedule(every_n_steps, "Sentinel")
        self._model_name, self._tokenizer_name = model, tokenizer
        self._grad_norm: float | None = None
        self._metrics: dict[str, float] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look as often as metrics are logged, unless told otherwise."""
        if self._schedule.every_n_steps is None:
            self._schedule.every_n_steps = max(1, trainer.log_every_n_steps)  # type: ignore[attr-defined]
        self._schedule.start(trainer)

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any
    ) -> None:
        """The gradient norm, where the step that is about to be taken gets a look."""
        every = self._schedule.every_n_steps
        if every and (trainer.global_step + 1) % every == 0:
            # One row each of a sparse gradient, so that the norm is that of the whole.
            grads = [
                numbers(p.grad.coalesce() if p.grad.is_sparse else p.grad)
                for group in optimizer.param_groups
                for p in group["params"]
                if p.grad is not None
            ]
            if not grads:
                return
            norm: Any = torch.nn.utils.get_total_norm(grads)
            self._grad_norm = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look where it is time."""
        if not self._schedule.is_due(trainer):
            return
        metrics = self._fresh(trainer)
        new = bool(metrics) and not self._of_validation
        if self._grad_norm is None:
            self._grad_norm = norm_of_step(trainer.strategy)
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        seen = Seen(
            loss=float(loss) if isinstance(loss, Tensor) and loss.numel() == 1 else None,
            learned=learned_tokens(pl_module, batch),
            metrics=metrics,
            grad_norm=self._grad_norm,
            held_out=self._rewards(trainer) if new else None,
        )
        self._grad_norm = None
        self._look(trainer, seen)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look at completions of the prompts."""
        if not self._prompts or trainer.sanity_checking:
            return
        model = find_model(pl_module, self._model_name)
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        tokenizer = find_tokenizer(pl_module, self._tokenizer_name, datamodule)
        # Hooks run outside of the precision that steps run in.
        with trainer.precision_plugin.forward_context():
            forest = Completer(pl_module, model, tokenizer, _BATCH).forest(
                self._prompts, range(len(self._prompts)), self.max_new_tokens, temperature=0.0
            )
        ends = set(tokenizer.all_special_ids)
        ids = [[t for t in completion if t not in ends] for _, completion, _ in forest.sequences()]
        self._look(trainer, Seen(texts=ids))

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compare the rewards of training and validation, which are logged by now."""
        if trainer.sanity_checking or trainer.state.fn != "fit" or not self._of_validation:
            return
        if (pair := self._rewards(trainer)) is not None:
            self._look(trainer, Seen(held_out=pair))

    def state_dict(self) -> dict[str, Any]:
        """What the checks remember, and what was told."""
        return {"memory": {c.name: list(c.memory) for c in self.checks}, "messages": dict(self.messages)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on watching."""
        self.messages = dict(state_dict["messages"])
        for check in self.checks:
            check.memory = list(state_dict["memory"].get(check.name, check.memory))

    def _look(self, trainer: Any, seen: Seen) -> None:
        found = [(check.name, check.look(seen)) for check in self.checks]
        # What one process sees, all must hear of, so that all stop at the same step.
        told = {name: message for name, message in gather(trainer, found) if message is not None}
        fresh = {name: message for name, message in told.items() if name not in self.messages}
        self.messages |= fresh
        for name, message in fresh.items() if trainer.is_global_zero else ():
            ending = ". Training stops" if self.stop else ""
            place = f"Sentinel ({name}) at step {trainer.global_step}"
            warnings.warn(f"{place}: {message}{ending}", stacklevel=2)
        if fresh and self.stop:
            trainer.should_stop = True

    @property
    def _of_validation(self) -> bool:
        return self.held_out.startswith("val")

    def _rewards(self, trainer: Any) -> tuple[float, float] | None:
        logged = trainer.callback_metrics
        if self.reward not in logged or self.held_out not in logged:
            return None
        return float(logged[self.reward]), float(logged[self.held_out])

    def _fresh(self, trainer: Any) -> dict[str, float]:
        """Metrics of training; none where all are as they were: then nothing was logged since."""
        metrics = {
            name.removeprefix("train/"): float(value)
            for name, value in trainer.callback_metrics.items()
            if not name.startswith(("val", "test"))
        }
        same = metrics == self._metrics
        self._metrics = metrics
        return {} if same else metrics
