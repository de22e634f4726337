"""The trained model as a Hugging Face directory, at the end of a run or every so many steps."""

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_warn

from lit_align.callbacks.model_lookup import find_model, find_tokenizer_or_none, models_in
from lit_align.callbacks.schedule import Schedule
from lit_align.models.export import critic_parts, save_pretrained_dir
from lit_align.models.whole_weights import whole_weights, without_wrappers


class ExportHF(L.Callback):
    """Write the trained model and its tokenizer, whole, under any strategy.

    Works with any module that holds a model of transformers, or of peft around one. Under FSDP of both
    generations, tensor parallelism and DeepSpeed the weights are put together on the host of process zero.
    The directory loads with ``from_pretrained``. A value head on the policy (``policy.value_head``) is
    written beside it as ``value_head.safetensors``, and a critic (``critic``, with ``model`` and
    ``value_head``) into the folder ``critic``.

    Args:
        directory: where to; ``export`` in the trainer's directory by default. With ``every_n_steps`` each
            model gets a folder ``step_000100`` in it, the last step too.
        merge: fold adapters into the weights; by default the adapters are written alone.
        every_n_steps: optimiser steps between two models; by default one at the end.
        model: attribute that holds the model, see :func:`lit_align.callbacks.model_lookup.find_model`.
        tokenizer: attribute that holds the tokenizer, which is written beside the model.
    """

    def __init__(
        self,
        directory: str | Path | None = None,
        merge: bool = False,
        every_n_steps: int | None = None,
        model: str | None = None,
        tokenizer: str | None = None,
    ) -> None:
        self.directory = Path(directory).expanduser() if directory is not None else None
        self.merge = merge
        self._schedule = Schedule(every_n_steps, "ExportHF")
        self._model_name, self._tokenizer_name = model, tokenizer
        self._last = -1

    @property
    def state_key(self) -> str:
        """Of its own for each directory, so that a trainer can have several."""
        return self._generate_state_key(directory=str(self.directory))

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Fail before training rather than after it where a model cannot be had."""
        if self._model_name is not None or models_in(pl_module):
            find_model(pl_module, self._model_name)

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
        """Write the last model; all processes wait."""
        if self._last != trainer.global_step:
            self._write(trainer, pl_module)

    def _write(self, trainer: Any, pl_module: Any) -> None:
        self._last = trainer.global_step
        if self._model_name is None and not models_in(pl_module):
            rank_zero_warn(f"{type(pl_module).__name__} holds no model of transformers: nothing is exported")
            return
        model = find_model(pl_module, self._model_name)
        value_head = getattr(getattr(pl_module, "policy", None), "value_head", None)
        critic = critic_parts(getattr(pl_module, "critic", None))
        # Where weights are sharded, all processes give their part.
        parts = [model, value_head, *(critic[:2] if critic else ())]
        whole = whole_weights(parts, trainer.strategy.model)
        if trainer.is_global_zero:
            path = self.directory or Path(trainer.default_root_dir) / "export"
            if self._schedule.every_n_steps is not None:
                path /= f"step_{trainer.global_step:06d}"
            tokenizer = find_tokenizer_or_none(pl_module, self._tokenizer_name, trainer.datamodule)
            with without_wrappers(parts):
                save_pretrained_dir(model, tokenizer, path, self.merge, value_head, critic, whole)
        trainer.strategy.barrier("export")
