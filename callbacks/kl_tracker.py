"""How far the policy has moved from its reference, while it trains."""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import lightning as L

from lit_align.batches import Forest
from lit_align.callbacks.before_restore import before_restore
from lit_align.callbacks.completions import Completer
from lit_align.callbacks.kl_references import AdapterOff, Cached, KLReference, OtherModel
from lit_align.callbacks.kl_tally import Tally
from lit_align.callbacks.learned_batch import answered_batch, learned_batch
from lit_align.callbacks.model_lookup import find_model, find_tokenizer, is_adapted
from lit_align.callbacks.prompts import Row, encode_rows, read_rows
from lit_align.callbacks.reporting import log_histogram, log_now
from lit_align.callbacks.schedule import Schedule
from lit_align.callbacks.sharding import refuse_spread, run_inside
from lit_align.callbacks.sharing import gather, my_chunks
from lit_align.runtime.data_place import data_place


class KLTracker(L.Callback):
    """Measure the KL divergence of the policy from a reference, on fixed rows or on the batches.

    Works with any module that holds a causal language model of transformers. Logs, per token and per
    sequence, ``k1``, ``k3`` and ``full`` (the exact divergence, summed over the vocabulary), as
    ``train/kl/...`` or ``val/kl/...``, with a histogram of the tokens for TensorBoard. ``k1`` and ``k3``
    estimate the divergence on completions that the policy samples (rows without a completion); on given
    ones, and on batches, they measure drift. Measuring changes nothing about the training.

    Args:
        reference: ``adapter_off`` (the base under LoRA), ``copy`` (a second model in memory, as the policy
            was at its start), ``cached`` (only the log-probs at the start of rows with completions; no full
            KL), or a directory or Hub name. ``auto``: ``adapter_off``, else ``cached``, else ``copy``,
            whichever can be.
        rows: prompts, or prompts with completions, as a list or a file, see
            :func:`lit_align.callbacks.prompts.read_rows`; by default the batches are measured.
        every_n_steps: optimiser steps between two measurements; by default at validation.
        bound: warn where the KL per token (full where there is one, else k3) is above it.
        stop: and stop the training there.
        max_new_tokens: longest completion that is sampled.
        batch_size: rows at once.
        name: of the metrics; two trackers need two.
        model: attribute that holds the model, see :func:`lit_align.callbacks.model_lookup.find_model`.
        tokenizer: attribute that holds the tokenizer.
    """

    def __init__(
        self,
        reference: str = "auto",
        rows: list[Any] | str | None = None,
        every_n_steps: int | None = None,
        bound: float | None = None,
        stop: bool = False,
        max_new_tokens: int = 64,
        batch_size: int = 8,
        name: str = "kl",
        model: str | None = None,
        tokenizer: str | None = None,
    ) -> None:
        if stop and bound is None:
            raise ValueError("KLTracker: stop needs a bound to stop at")
        self.name = name
        self.bound, self.stop = bound, stop
        self.max_new_tokens, self.batch_size = max_new_tokens, batch_size
        self._wanted = reference
        self._rows: list[Row] | None = read_rows(rows, "KLTracker") if rows is not None else None
        if reference == "cached" and not self._given:
            raise ValueError("KLTracker: cached log-probs are of fixed rows: give rows with completions")
        self._schedule = Schedule(every_n_steps, "KLTracker")
        self._model_name, self._tokenizer_name = model, tokenizer
        self._model: Any = None
        self._tokenizer: Any = None
        self._reference: KLReference | None = None
        self._restored: dict[int, Any] = {}
        self._tally: Tally | None = None
        self._completer: Completer | None = None
        self._cancel: Callable[[], None] = lambda: None

    @property
    def state_key(self) -> str:
        """Of its own for each name, so that a trainer can have several."""
        return self._generate_state_key(name=self.name)

    # -- the start -------------------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Watch for a checkpoint: the reference is made of the weights before it is loaded."""
        refuse_spread(trainer, "KLTracker")
        self._model = self._completer = None
        self._cancel = before_restore(pl_module, lambda: self._start(trainer, pl_module))

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Make the reference of a run that starts anew."""
        self._start(trainer, pl_module)
        self._schedule.start(trainer)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Count from the step that a resumed run goes on from."""
        self._schedule.start(trainer)
        self._remember(trainer, pl_module)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin a measurement."""
        self._start(trainer, pl_module)
        self._remember(trainer, pl_module)
        assert self._reference is not None
        self._tally = Tally(self._reference.estimates)

    def _start(self, trainer: Any, pl_module: Any) -> None:
        self._cancel()
        if self._model is not None:
            return
        self._model = find_model(pl_module, self._model_name)
        if getattr(self._model.config, "is_encoder_decoder", False):
            raise ValueError(
                f"KLTracker: {type(self._model).__name__} is no decoder; only causal models are read"
            )
        if self._rows is not None:
            self._tokenizer = find_tokenizer(pl_module, self._tokenizer_name, trainer.datamodule)
        if self._reference is None:
            self._reference = self._make_reference()

    def _make_reference(self) -> KLReference:
        wanted = self._wanted
        adapted = is_adapted(self._model)
        if wanted == "auto":
            wanted = "adapter_off" if adapted else "cached" if self._given else "copy"
        if wanted == "adapter_off":
            if not adapted:
                raise ValueError(
                    "KLTracker: the model has no adapters to switch off; use copy, cached or a path"
                )
            return AdapterOff()
        if wanted == "cached":
            return Cached()
        return OtherModel.copy_of(self._model) if wanted == "copy" else OtherModel.from_path(wanted)

    def _remember(self, trainer: Any, pl_module: Any) -> None:
        reference = self._reference
        if not isinstance(reference, Cached) or reference.logps:
            return
        reference.logps |= self._restored
        if reference.logps:
            return

        # Hooks run outside of the precision that steps run in.
        with trainer.precision_plugin.forward_context():
            for rows, _ in self._chunks(trainer):
                forest = self._forest(rows, pl_module)
                run_inside(pl_module, self._model, partial(reference.remember, self._model, forest, rows))
        # Any process may be given any rows when the run is resumed with another number of them.
        reference.logps = dict(gather(trainer, list(reference.logps.items())))

    # -- measurements ----------------------------------------------------------------------------

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure where it is time."""
        if not self._schedule.is_due(trainer):
            return
        assert self._reference is not None
        tally = Tally(self._reference.estimates)
        self._measure(trainer, pl_module, tally, batch)
        metrics = tally.means(trainer)
        log_now(trainer, {f"train/{self.name}/{key}": value for key, value in metrics.items()})
        self._finish(trainer, tally, metrics, "train")

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add a batch to the measurement, where batches are measured."""
        if self._rows is None and self._measures_validation(trainer):
            assert self._tally is not None
            # A module that answers held-out prompts returns them so.
            answers = outputs.get("answers") if isinstance(outputs, dict) else None
            self._measure(trainer, pl_module, self._tally, batch if answers is None else answers)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Report the measurement."""
        if not self._measures_validation(trainer):
            return
        assert self._tally is not None
        if self._rows is not None:
            self._measure(trainer, pl_module, self._tally, None)
        metrics = self._tally.means(trainer)
        # Equal on all processes already; sync_dist only tells Lightning so.
        pl_module.log_dict({f"val/{self.name}/{k}": v for k, v in metrics.items()}, sync_dist=True)
        self._finish(trainer, self._tally, metrics, "val")

    def _measures_validation(self, trainer: Any) -> bool:
        by_steps = self._schedule.every_n_steps is not None and trainer.state.fn == "fit"
        return not by_steps and not trainer.sanity_checking

    def _measure(self, trainer: Any, pl_module: Any, tally: Tally, batch: Any) -> None:
        assert self._reference is not None
        with trainer.precision_plugin.forward_context():
            if self._rows is None:
                forest = (
                    learned_batch(pl_module, batch, "KLTracker")
                    if trainer.training
                    else answered_batch(batch, "KLTracker")
                ).to(pl_module.device)
                if forest.num_tokens:
                    self._add(pl_module, tally, forest, None)
                return
            for rows, counts in self._chunks(trainer):
                self._add(pl_module, tally if counts else None, self._forest(rows, pl_module), rows)

    def _add(self, pl_module: Any, tally: Tally | None, forest: Forest, rows: range | None) -> None:
        assert self._reference is not None
        measure = partial(self._reference.divergences, self._model, forest, rows)
        values = run_inside(pl_module, self._model, measure)
        if tally is not None:
            tally.add(values, _sequences(forest))

    def _chunks(self, trainer: Any) -> list[tuple[range, bool]]:
        assert self._rows is not None
        place = data_place(trainer)
        return my_chunks(len(self._rows), self.batch_size, place.rank, place.size)

    def _forest(self, rows: range, pl_module: Any) -> Forest:
        assert self._rows is not None
        chosen = [self._rows[i] for i in rows]
        if self._given:
            return encode_rows(self._tokenizer, chosen).to(pl_module.device)
        if self._completer is None:
            self._completer = Completer(pl_module, self._model, self._tokenizer, self.batch_size)
        # The same seeds at every look, so that a change of the numbers is a change of the model.
        return self._completer.forest([row.prompt for row in chosen], rows, self.max_new_tokens, 1.0)

    def _finish(self, trainer: Any, tally: Tally, metrics: dict[str, float], stage: str) -> None:
        name = tally.estimates[-1]
        log_histogram(trainer, f"{stage}/{self.name}/{name}", tally.per_token(trainer, name))
        value = metrics.get(name, 0.0)
        if self.bound is None or value <= self.bound:
            return
        message = (
            f"KLTracker: the KL per token ({name}) from the reference is {value:.4g} at step "
            f"{trainer.global_step}, above the bound of {self.bound:g}. Read samples: if they are worse, "
            "lower the learning rate or strengthen the pull towards the reference (beta)"
        )
        if trainer.is_global_zero:
            warnings.warn(message + (". Training stops" if self.stop else ""), stacklevel=2)
        if self.stop:
            trainer.should_stop = True

    # -- the rest --------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The log-probs at the start, where they are the reference."""
        return {"logps": dict(self._reference.logps)} if isinstance(self._reference, Cached) else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the log-probs at the start of the run that goes on."""
        self._restored = state_dict.get("logps", {})

    @property
    def _given(self) -> bool:
        return self._rows is not None and self._rows[0].completion is not None


def _sequences(forest: Forest) -> int:
    scored = forest.sequence[forest.weights != 0]
    return len(set(scored.tolist()))
