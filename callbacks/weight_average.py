"""An average of the weights over training, kept beside them."""

from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor

from lit_align.callbacks.model_lookup import find_model, find_tokenizer_or_none
from lit_align.callbacks.schedule import Schedule
from lit_align.callbacks.sharding import refuse_spread, spread_like, trained_weights, whole
from lit_align.callbacks.whole_model import whole_model
from lit_align.models.export import save_pretrained_dir

#: The defaults of the authors' own code, https://github.com/abblock/bema.
BEMA_LAG, BEMA_MULTIPLIER, BEMA_EMA_POWER, BEMA_BIAS_POWER = 10.0, 1.0, 0.5, 0.2


class WeightAverage(L.Callback):
    """Keep an average of the trained weights; validate with it, and write it as a Hugging Face directory.

    Only trained weights are averaged, so under LoRA it costs as much memory as the adapters. The weights in
    training are not touched: they are back in place as soon as a validation is over. Lightning's own
    ``EMAWeightAveraging`` puts the average into the checkpoint in the weights' place instead, and copies the
    whole module.

    ``ema``: ``average <- decay average + (1 - decay) weights``. ``bema`` (Block and Zhang 2025, arXiv
    2508.00180) takes out the lag behind the weights: at step ``t``, with ``b = (10 + t)^-0.5`` and
    ``a = (10 + t)^-0.2``, ``average <- (1 - b) average + b weights``, and what is used is
    ``average + a (weights - start)``; it keeps the start, too.

    Args:
        kind: ``ema`` or ``bema``.
        decay: of ``ema``.
        every_n_steps: optimiser steps between two updates.
        validate: whether validation during ``fit`` sees the average.
        directory: where to write the averaged model at the end; by default it is not written.
        model: attribute that holds the model, see :func:`lit_align.callbacks.model_lookup.find_model`.
        tokenizer: attribute that holds the tokenizer.
    """

    def __init__(
        self,
        kind: Literal["ema", "bema"] = "ema",
        decay: float = 0.999,
        every_n_steps: int = 1,
        validate: bool = True,
        directory: str | None = None,
        model: str | None = None,
        tokenizer: str | None = None,
    ) -> None:
        if kind not in ("ema", "bema"):
            raise ValueError(f"WeightAverage: kind is {kind!r}; choose ema or bema")
        if not 0 <= decay < 1:
            raise ValueError(f"WeightAverage: decay is {decay}; it must be at least 0 and below 1")
        self.kind, self.decay, self.validate, self.directory = kind, decay, validate, directory
        self._schedule = Schedule(every_n_steps, "WeightAverage")
        self._model_name, self._tokenizer_name = model, tokenizer
        self._average: dict[str, Tensor] = {}
        self._start: dict[str, Tensor] = {}
        self._step = 0
        self._swapped: dict[str, Tensor] = {}

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Refuse a strategy without whole weights."""
        refuse_spread(trainer, "WeightAverage")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin with the weights as they are, unless the run goes on."""
        self._schedule.start(trainer)
        weights = trained_weights(pl_module)
        if self._average:
            _check(self._average, weights)
            self._average = spread_like(self._average, weights)
            self._start = spread_like(self._start, weights)
            return
        # In float32, because (1 - decay) of a bfloat16 weight is rounded away.
        self._average = {name: p.detach().float().clone() for name, p in weights.items()}
        if self.kind == "bema":
            self._start = {name: value.clone() for name, value in self._average.items()}

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take the weights into the average where it is time."""
        if not self._schedule.is_due(trainer):
            return
        self._step = trainer.global_step
        share = 1 - self.decay if self.kind == "ema" else self._power(BEMA_EMA_POWER)
        weights = trained_weights(pl_module)
        for name, value in self._average.items():
            value.lerp_(weights[name].detach().float(), share)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put the average in the place of the weights."""
        if self.validate and trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._swap_in(pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put the weights back, before any checkpoint is written."""
        self._swap_out(pl_module)

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save the weights in training, also from inside a validation, where the average stands for them."""
        state = checkpoint.get("state_dict", {})
        state |= {name: value for name, value in self._swapped.items() if name in state}

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Put the weights back where a validation was cut off."""
        self._swap_out(pl_module)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the averaged model."""
        if self.directory is None:
            return
        self._swap_in(pl_module)
        try:
            model = whole_model(find_model(pl_module, self._model_name), keep=trainer.is_global_zero)
            if trainer.is_global_zero:
                datamodule = trainer.datamodule  # type: ignore[attr-defined]
                tokenizer = find_tokenizer_or_none(pl_module, self._tokenizer_name, datamodule)
                save_pretrained_dir(model, tokenizer, Path(self.directory))
        finally:
            self._swap_out(pl_module)
        trainer.strategy.barrier("average")

    def weights(self, pl_module: L.LightningModule) -> dict[str, Tensor]:
        """The averaged weights in float32, by their names in the module; shards where those are."""
        if self.kind == "ema":
            return dict(self._average)
        bias, now = self._power(BEMA_BIAS_POWER), trained_weights(pl_module)
        return {
            name: value + bias * (now[name].detach().float() - self._start[name])
            for name, value in self._average.items()
        }

    def state_dict(self) -> dict[str, Any]:
        """The average, the start, and the step of the last update."""
        return {"average": whole(self._average), "start": whole(self._start), "step": self._step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the average of the run that goes on."""
        self._average, self._start = state_dict["average"], state_dict["start"]
        self._step = state_dict["step"]

    def _power(self, power: float) -> float:
        return float((BEMA_LAG + BEMA_MULTIPLIER * self._step) ** -power)

    @torch.no_grad()
    def _swap_in(self, pl_module: Any) -> None:
        weights = trained_weights(pl_module)
        averaged = self.weights(pl_module)
        self._swapped = {name: p.detach().clone() for name, p in weights.items()}
        for name, parameter in weights.items():
            parameter.copy_(averaged[name])

    @torch.no_grad()
    def _swap_out(self, pl_module: Any) -> None:
        swapped, self._swapped = self._swapped, {}
        for name, parameter in trained_weights(pl_module).items() if swapped else ():
            parameter.copy_(swapped[name])


def _check(saved: dict[str, Tensor], weights: dict[str, Tensor]) -> None:
    if saved.keys() != weights.keys():
        other = sorted(saved.keys() ^ weights.keys())
        raise ValueError(
            f"WeightAverage: the checkpoint averages other weights than are trained now ({len(other)} "
            f"differ, such as {other[0]}); start a new run, or train the same weights"
        )
