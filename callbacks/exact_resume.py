"""A run that was cut off goes on as if it had not been, to the last bit of the weights."""

import logging
import os
import warnings
from typing import Any, Literal

import lightning as L
from torch.utils.data import DataLoader, DistributedSampler

from lit_align.datamodules.cache import tokenizer_digest
from lit_align.datamodules.resumable import resumable
from lit_align.datamodules.sampling import BatchOrder
from lit_align.runtime.fingerprint import digest_of, fingerprint
from lit_align.runtime.position import (
    Position,
    completed_batches,
    enter_position,
    epoch_is_over,
    rewind_loops,
)
from lit_align.runtime.seeds import derive, reseed

logger = logging.getLogger(__name__)


class DataChanged(RuntimeError):
    """The data or the tokenizer of a run that goes on is not the one that it was started with."""


class ExactResume(L.Callback):
    """Make ``fit(ckpt_path=...)`` continue bit for bit.

    The order of the rows is a function of (seed, epoch); the checkpoint holds the epoch and the number of
    rows seen, over all processes. At each batch the generators of torch, Python and NumPy are seeded from
    (seed, epoch, batch, rank), so no state of a generator is stored, and no validation, sanity check or
    other callback can shift what training draws.

    Works with the data modules of this package, and with any module and plain `DataLoader` over a
    map-style dataset: such a loader is given an order of this kind by itself. A run may go on with
    another number of processes: the order of the rows stays. A checkpoint written inside a window of
    accumulation goes on at the window's start, since the gradients are not in it.

    Args:
        seed: of the run; by default that of ``seed_everything``, or 0.
        on_changed: what to do about other data or another tokenizer than the checkpoint's: ``error``, or
            ``restart`` the epoch from its first row, with the weights and the optimiser as they are.
        fingerprint: a name of the data's content; by default made from the dataset, see
            :func:`lit_align.runtime.fingerprint.fingerprint`.
    """

    def __init__(
        self,
        seed: int | None = None,
        on_changed: Literal["error", "restart"] = "error",
        fingerprint: str | None = None,
    ) -> None:
        if on_changed not in ("error", "restart"):
            raise ValueError(f"on_changed is {on_changed!r}; choose error or restart")
        self.seed = seed
        self.on_changed = on_changed
        self.fingerprint = fingerprint
        self._order: Any = None
        self._workers = 0
        self._found: dict[str, str] = {}
        self._restored: dict[str, Any] | None = None
        # An epoch, and the batches that the loops had counted of it when the pass over the loader began.
        self._counted = (0, 0)
        # Of the last batch that was started.
        self._epoch = 0
        self._trainer: L.Trainer | None = None
        self._seed = 0
        self._rank = 0

    # -- set-up ----------------------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Take the seed, and a look at the train loader as soon as there is one."""
        if stage != "fit":
            return
        self._trainer = trainer
        self._order = None
        self._counted = (0, 0)
        self._restored = None
        given = os.environ.get("PL_GLOBAL_SEED", "0") if self.seed is None else self.seed
        self._seed = int(given)
        place = trainer.distributed_sampler_kwargs or {}
        self._rank = place.get("rank", 0)
        # Lightning has no hook between making a loader and iterating over it.
        source = trainer.fit_loop._data_source
        make = source.dataloader
        source.dataloader = lambda: self._adopt(trainer, make())  # type: ignore[method-assign]

    def _adopt(self, trainer: Any, loader: Any) -> Any:
        """The train loader with an order that can begin anywhere, or as it is with a word about why."""
        if trainer.overfit_batches:
            self._cannot("overfit_batches puts a sampler of Lightning's into the train loader")
            return loader
        if not isinstance(loader, DataLoader):
            self._cannot(f"the train loader is a {type(loader).__name__}, not one DataLoader")
            return loader
        try:
            loader = resumable(loader, self._seed, **self._place(trainer, loader))
        except ValueError as error:
            self._cannot(str(error))
            return loader
        self._order = loader.sampler
        self._workers = loader.num_workers
        self._found = self._fingerprints(trainer, loader)
        return loader

    def _place(self, trainer: L.Trainer, loader: DataLoader[Any]) -> dict[str, int]:
        automatic = trainer._accelerator_connector.use_distributed_sampler
        shared = automatic and not isinstance(loader.sampler, DistributedSampler)
        return (trainer.distributed_sampler_kwargs or {}) if shared else {}

    def _cannot(self, reason: str) -> None:
        logger.warning(
            "the order of the data cannot be resumed: %s. Randomness is still a function of the step", reason
        )

    def _fingerprints(self, trainer: L.Trainer, loader: DataLoader[Any]) -> dict[str, str]:
        dataset: Any = loader.dataset
        # Of a stranger's dataset, the rows and not our view of them.
        dataset = getattr(dataset, "dataset", dataset)
        found = {"data": self.fingerprint or fingerprint(dataset), "order": _order_digest(self._order)}
        module: Any = trainer.lightning_module
        if getattr(module, "has_tokenizer", True):
            tokenizer = getattr(module, "tokenizer", None)
            if callable(getattr(tokenizer, "get_vocab", None)):
                found["tokenizer"] = tokenizer_digest(tokenizer)[:16]
        return found

    # -- checkpoint ------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Position, seed and fingerprints, as plain data; nothing before there was a ``fit``."""
        if self._trainer is None:
            return {}
        return {**self._position(self._trainer).state(), "seed": self._seed, "fingerprints": self._found}

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Set the counters of the loops to the position, whatever hook they were saved in."""
        state = checkpoint["callbacks"].get(self.state_key)
        if trainer.state.fn != "fit":
            return
        if state is None:
            logger.warning("the checkpoint was written without ExactResume: the run goes on, but not exactly")
            return
        self._restored = state
        rewind_loops(checkpoint["loops"]["fit_loop"], _position_of(state))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin the data where the checkpoint says."""
        state, self._restored = self._restored, None
        if state is None:
            return
        if self.seed is None:
            self._seed = state["seed"]
        elif self._seed != state["seed"]:
            logger.warning("the run goes on with seed %d; it was started with %d", self._seed, state["seed"])
        position = _position_of(state)
        if self._order is None:
            enter_position(trainer, position.batches)
            return
        if not self._same_data(state["fingerprints"]):
            position = Position(position.epoch)
        # Lightning knows only loaders that carry their own state.
        warnings.filterwarnings("ignore", message="You're resuming from a checkpoint that ended before")
        self._order.set_epoch(position.epoch)
        self._order.start_at(position.epoch, position.rows, position.repeats)
        remaining = len(list(self._order))
        batches = max(0, len(self._order) - remaining) if position.rows or position.repeats else 0
        if batches % trainer.accumulate_grad_batches:
            logger.warning(
                "the run goes on inside a window of %d batches, because the number of processes or "
                "accumulate_grad_batches changed: the first window is shorter",
                trainer.accumulate_grad_batches,
            )
        enter_position(trainer, batches)
        self._counted = (position.epoch, batches)
        # Lightning began to iterate when it counted the batches, before it knew the position.
        iter(trainer.fit_loop._data_fetcher)  # type: ignore[arg-type]

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seed the global generators for this batch."""
        self._epoch = self._order.epoch if self._order is not None else trainer.current_epoch
        reseed(derive(self._seed, "batch", self._epoch, batch_idx, self._rank))

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Say what a broken connection means where batches come from other processes."""
        # torch names a dead worker where it waits for a batch, and not where it fetches one's tensors.
        if self._workers and isinstance(exception, (ConnectionError, EOFError)):
            # Behind the exception's own words, where people look first in a long traceback.
            exception.add_note(
                "a DataLoader worker exited unexpectedly, most often because the machine ran out of memory: "
                "take fewer num_workers or smaller batches, and go on from the last checkpoint"
            )

    # -- position --------------------------------------------------------------------------------

    def _position(self, trainer: L.Trainer) -> Position:
        if epoch_is_over(trainer):
            return Position(self._epoch + 1)
        batches = completed_batches(trainer)
        order = self._order
        if order is None:
            return Position(trainer.current_epoch, 0, batches)
        epoch, counted = self._counted
        before = counted if epoch == order.epoch else 0
        done = batches - before
        return Position(order.epoch, order.position(done), batches, order.repeats_done(done))

    def _same_data(self, saved: dict[str, str]) -> bool:
        changed = [k for k in saved.keys() & self._found.keys() if saved[k] != self._found[k]]
        if not changed:
            return True
        names = {"order": "order of the data (seed, shuffling or bucketing)"}
        told = "; ".join(f"{names.get(k, k)}: {saved[k]} then, {self._found[k]} now" for k in sorted(changed))
        if self.on_changed == "restart":
            logger.warning("not the data of the checkpoint (%s): the epoch begins anew", told)
            return False
        raise DataChanged(
            f"the checkpoint was trained on other data, so its position means nothing here ({told}). "
            "Give the data and tokenizer that the run was started with, or ExactResume(on_changed='restart') "
            "to keep the weights and begin the epoch anew"
        )


def _order_digest(order: BatchOrder) -> str:
    cut = (order.batch_size, order.batch_tokens) if order.length_bucketing else ()
    return digest_of(type(order).__name__, order.seed, order.shuffle, order.length_bucketing, cut)


def _position_of(state: dict[str, Any]) -> Position:
    # A checkpoint older than repeated batches knows of none.
    return Position(state["epoch"], state["rows"], state["batches"], state.get("repeats", 0))
