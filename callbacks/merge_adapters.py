"""A model with its adapters worked in, as an ordinary Hugging Face directory."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import lightning as L

from lit_align.callbacks.adapter_mixing import Combination, check_mix, mixed_adapter
from lit_align.callbacks.model_lookup import find_model, find_tokenizer_or_none, is_adapted
from lit_align.callbacks.schedule import Schedule
from lit_align.callbacks.sharding import refuse_spread
from lit_align.callbacks.whole_model import whole_model
from lit_align.models.export import save_pretrained_dir


class MergeAdapters(L.Callback):
    """Write base and LoRA as one model, at the end of ``fit`` or every so many steps.

    Works with any module that holds a model of peft. The model in training is not touched; a quantised base
    is loaded again in full precision; a sharded one is put together on the host of process zero. The
    directory loads with ``AutoModelForCausalLM.from_pretrained``.

    Args:
        directory: ``merged`` in the trainer's directory by default. With ``every_n_steps`` each model gets a
            folder ``step_000100`` in it, the last step too.
        every_n_steps: optimiser steps between two models; by default one at the end.
        adapters: several adapters and their weights, by the names they have in the model or by their
            directories; by default the adapter that is trained, as it is.
        combination: how several are combined, see :data:`lit_align.callbacks.adapter_mixing.Combination`.
        density: share of the weights that ``ties`` and ``dare_...`` keep.
        model: attribute that holds the model, see :func:`lit_align.callbacks.model_lookup.find_model`.
        tokenizer: attribute that holds the tokenizer, which is written beside the model.
    """

    def __init__(
        self,
        directory: str | None = None,
        every_n_steps: int | None = None,
        adapters: dict[str, float] | None = None,
        combination: Combination = "cat",
        density: float | None = None,
        model: str | None = None,
        tokenizer: str | None = None,
    ) -> None:
        check_mix(adapters, combination, density)
        self.directory = directory
        self.adapters, self.combination, self.density = adapters, combination, density
        self._schedule = Schedule(every_n_steps, "MergeAdapters")
        self._model_name, self._tokenizer_name = model, tokenizer
        self._last = -1

    @property
    def state_key(self) -> str:
        """Of its own for each directory, so that a trainer can have several."""
        return self._generate_state_key(directory=self.directory, adapters=self.adapters)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Fail before training rather than after it where there is nothing to merge."""
        refuse_spread(trainer, "MergeAdapters")
        self._model(pl_module)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Count from the step that a resumed run goes on from."""
        self._schedule.start(trainer)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write a model where it is time."""
        if self._schedule.is_due(trainer):
            self._write(trainer, pl_module)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the last model."""
        if self._last != trainer.global_step:
            self._write(trainer, pl_module)

    def _write(self, trainer: Any, pl_module: Any) -> None:
        self._last = trainer.global_step
        model = whole_model(self._model(pl_module), keep=trainer.is_global_zero)
        if trainer.is_global_zero:
            path = Path(self.directory or Path(trainer.default_root_dir) / "merged").expanduser()
            if self._schedule.every_n_steps is not None:
                path /= f"step_{trainer.global_step:06d}"
            mix: AbstractContextManager[None] = nullcontext()
            if self.adapters is not None:
                mix = mixed_adapter(model, self.adapters, self.combination, self.density)
            tokenizer = find_tokenizer_or_none(pl_module, self._tokenizer_name, trainer.datamodule)
            with mix:
                save_pretrained_dir(model, tokenizer, path, merge=True)
        trainer.strategy.barrier("merge")

    def _model(self, pl_module: Any) -> Any:
        model = find_model(pl_module, self._model_name)
        if not is_adapted(model):
            raise ValueError(
                f"MergeAdapters: {type(model).__name__} has no adapters; ExportHF writes it as it is"
            )
        return model
