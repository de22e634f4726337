"""The trained model mixed with the one it began as, or with others, as a Hugging Face directory."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import lightning as L
import torch
from torch import Tensor

from lit_align.callbacks.before_restore import before_restore
from lit_align.callbacks.model_lookup import find_model, find_tokenizer_or_none, is_adapted
from lit_align.callbacks.schedule import Schedule
from lit_align.callbacks.sharding import refuse_spread
from lit_align.callbacks.whole_model import whole_model
from lit_align.functional.merging import linear, slerp, task_arithmetic
from lit_align.models.build import build_causal_lm
from lit_align.models.export import merged_model, save_pretrained_dir

Method = Literal["linear", "slerp", "task_arithmetic"]


class MergeModels(L.Callback):
    """Write a mixture of the trained model and its base, at the end of ``fit`` or every so many steps.

    Half-way back to the base, a model often keeps most of what was learned and regains what was lost (WARP,
    Rame et al. 2024, arXiv 2406.16768). The formulas are those of :mod:`lit_align.functional.merging`. Works
    with any module that holds a causal language model of transformers, or of peft around one, whose adapter
    is worked in first. The model in training is not touched.

    Args:
        directory: ``mixed`` in the trainer's directory by default. With ``every_n_steps`` each model gets a
            folder ``step_000100`` in it, the last step too.
        method: ``linear`` or ``slerp`` between base and trained model, tensor by tensor, or
            ``task_arithmetic``: base plus weighted differences.
        weight: of the trained model; 0 is the base.
        base: a directory, a shipped name or a name on the Hub; by default the model as it was when training
            began, which is kept on the host of process zero.
        others: further models, by path, and their weights; for ``task_arithmetic``.
        every_n_steps: optimiser steps between two models; by default one at the end.
        model: attribute that holds the model, see :func:`lit_align.callbacks.model_lookup.find_model`.
        tokenizer: attribute that holds the tokenizer, which is written beside the model.
    """

    def __init__(
        self,
        directory: str | None = None,
        method: Method = "linear",
        weight: float = 0.5,
        base: str | None = None,
        others: dict[str, float] | None = None,
        every_n_steps: int | None = None,
        model: str | None = None,
        tokenizer: str | None = None,
    ) -> None:
        if method not in get_args(Method):
            raise ValueError(
                f"MergeModels: method is {method!r}; choose one of {', '.join(get_args(Method))}"
            )
        if others and method != "task_arithmetic":
            raise ValueError(f"MergeModels: {method} is between two models; others go with task_arithmetic")
        self.directory, self.method, self.weight = directory, method, weight
        self.base, self.others = base, others or {}
        self._schedule = Schedule(every_n_steps, "MergeModels")
        self._model_name, self._tokenizer_name = model, tokenizer
        self._start: dict[str, Tensor] | None = None
        self._last = -1
        self._cancel: Callable[[], None] = lambda: None

    @property
    def state_key(self) -> str:
        """Of its own for each directory, so that a trainer can have several."""
        return self._generate_state_key(directory=self.directory, method=self.method, weight=self.weight)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Watch for a checkpoint: the start is that of the weights before it is loaded."""
        if stage == "fit":
            refuse_spread(trainer, "MergeModels")
            self._start, self._last = None, -1
            self._cancel = before_restore(pl_module, lambda: self._remember(trainer, pl_module))

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the start of a run that starts anew."""
        self._remember(trainer, pl_module)

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
        """Write the last model, and let go of the start."""
        if self._last != trainer.global_step:
            self._write(trainer, pl_module)
        self._start = None

    def _remember(self, trainer: Any, pl_module: Any) -> None:
        self._cancel()
        if self._start is not None:
            return
        model = self._plain(trainer, pl_module)
        self._start = {}
        if model is not None and self.base is None:
            # A copy: the model goes on to be trained.
            self._start = {name: t.detach().to("cpu", copy=True) for name, t in model.state_dict().items()}

    def _plain(self, trainer: Any, pl_module: Any) -> Any:
        """The model without adapters and shards, on process zero."""
        model = whole_model(find_model(pl_module, self._model_name), keep=trainer.is_global_zero)
        return merged_model(model) if model is not None and is_adapted(model) else model

    def _write(self, trainer: Any, pl_module: Any) -> None:
        self._last = trainer.global_step
        model = self._plain(trainer, pl_module)
        if model is not None:
            path = Path(self.directory or Path(trainer.default_root_dir) / "mixed").expanduser()
            if self._schedule.every_n_steps is not None:
                path /= f"step_{trainer.global_step:06d}"
            tokenizer = find_tokenizer_or_none(pl_module, self._tokenizer_name, trainer.datamodule)
            save_pretrained_dir(self._mixed(model), tokenizer, path)
        trainer.strategy.barrier("mix")

    @torch.no_grad()
    def _mixed(self, model: Any) -> Any:
        base = self._start if self.base is None else _weights_of(self.base)
        others = {path: _weights_of(path) for path in self.others}
        state: dict[str, Tensor] = {}
        for name, tensor in model.state_dict().items():
            if not tensor.is_floating_point():
                state[name] = tensor
                continue
            start = _counterpart(base, name, tensor, "the base")
            others_here = [_counterpart(found, name, tensor, path) for path, found in others.items()]
            state[name] = self._mix(start, tensor.cpu(), others_here).to(tensor.dtype)
        with torch.device("meta"):
            shell = type(model)(model.config)
        shell.load_state_dict(state, assign=True)
        shell.generation_config = model.generation_config
        return shell

    def _mix(self, start: Tensor, trained: Tensor, others: list[Tensor]) -> Tensor:
        if self.method == "linear":
            return linear(start, trained, self.weight)
        if self.method == "slerp":
            return slerp(start, trained, self.weight)
        return task_arithmetic(start, [trained, *others], [self.weight, *self.others.values()])


def _weights_of(path: str) -> dict[str, Tensor]:
    return dict(build_causal_lm(path).state_dict())


def _counterpart(state: dict[str, Tensor] | None, name: str, tensor: Tensor, whose: str) -> Tensor:
    found = (state or {}).get(name)
    if found is None or found.shape != tensor.shape:
        shape = "none" if found is None else f"one of shape {list(found.shape)}"
        raise ValueError(
            f"MergeModels: the trained model has {name} of shape {list(tensor.shape)}, {whose} has {shape}; "
            "models to mix must have one architecture and one vocabulary"
        )
    return found
