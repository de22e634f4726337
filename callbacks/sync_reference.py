"""A reference that follows the policy (TR-DPO), in anyone's module."""

from typing import Any

import lightning as L
from torch import Tensor

from lit_align.callbacks.model_lookup import find_model, is_adapted, models_in
from lit_align.callbacks.schedule import Schedule
from lit_align.callbacks.sharding import mix_in, refuse_spread, reshard, spread_like, whole
from lit_align.scoring.adapters import active_adapter, adapter_tensors
from lit_align.scoring.frozen_copy import EMA
from lit_align.scoring.references import Cached, Reference


class SyncReference(L.Callback):
    """Mix the policy into the reference every so many optimiser steps.

    TR-DPO (Gorbatovski et al. 2024, arXiv 2404.09656, equations 4 and 5): ``reference <- (1 - alpha)
    reference + alpha policy`` is the soft update, ``alpha=1`` the hard one. Only weights that are trained are
    mixed: under LoRA two adapters on one base. The reference goes with the checkpoint.

    Works with any module that holds two models of transformers of the same names, one trained and one frozen,
    or one of peft with a second, frozen adapter.

    Args:
        alpha: weight of the policy.
        every_n_steps: optimiser steps between two updates.
        reference: attribute that holds the reference model, with dots, or the name of the adapter; by default
            the only other adapter, else the only other model of transformers in the module.
        model: attribute that holds the policy, see :func:`lit_align.callbacks.model_lookup.find_model`.
    """

    def __init__(
        self,
        alpha: float = 0.6,
        every_n_steps: int = 512,
        reference: str | None = None,
        model: str | None = None,
    ) -> None:
        if not 0 < alpha <= 1:
            raise ValueError(f"SyncReference: alpha is {alpha}; it must be above 0 and at most 1")
        self.alpha = alpha
        self._schedule = Schedule(every_n_steps, "SyncReference")
        self._reference_name, self._model_name = reference, model
        self._pairs: dict[str, tuple[Tensor, Tensor]] = {}
        self._restored: dict[str, Tensor] = {}
        #: Updates so far, over resumed runs.
        self.updates = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Find the two, and put a resumed run's reference in its place.

        Raises:
            ValueError: there is no reference, or several, or one that must not move.
        """
        refuse_spread(trainer, "SyncReference")
        self._schedule.start(trainer)
        for path, child in pl_module.named_modules():
            if isinstance(child, EMA):
                raise ValueError(f"SyncReference: {path} is an EMA, which follows by itself; leave one out")
            if isinstance(child, Cached):
                raise ValueError(
                    f"SyncReference: {path} keeps log-probs of a reference that stays; leave Cached out"
                )
            if isinstance(child, Reference):
                child.moves = True
        reshard(pl_module)
        self._pairs = self._find(pl_module)
        if self._restored:
            self._restore()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update where it is time."""
        if not self._schedule.is_due(trainer):
            return
        reshard(pl_module)
        mine, theirs = zip(*self._pairs.values(), strict=True)
        mix_in(mine, theirs, self.alpha)
        self.updates += 1

    def state_dict(self) -> dict[str, Any]:
        """The reference, once it has moved."""
        moved = self._restored
        if self.updates and self._pairs:
            moved = whole({name: mine.detach() for name, (mine, _) in self._pairs.items()})
        return {"reference": moved, "updates": self.updates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the reference of the run that goes on."""
        self._restored, self.updates = state_dict["reference"], state_dict["updates"]

    def _restore(self) -> None:
        if self._restored.keys() != self._pairs.keys():
            other = sorted(self._restored.keys() ^ self._pairs.keys())
            raise ValueError(
                f"SyncReference: the checkpoint's reference has other weights than are trained now "
                f"({len(other)} differ, such as {other[0]}); start a new run, or train the same weights"
            )
        places = {name: mine for name, (mine, _) in self._pairs.items()}
        restored = spread_like(self._restored, places)
        mix_in(places.values(), (restored[name] for name in places), 1.0)
        self._restored = {}

    def _find(self, pl_module: Any) -> dict[str, tuple[Tensor, Tensor]]:
        """The reference's tensors, each with the policy's."""
        model = find_model(pl_module, self._model_name)
        adapters = [n for n in model.peft_config if n != active_adapter(model)] if is_adapted(model) else []
        others = {path: m for path, m in models_in(pl_module).items() if m is not model}
        wanted = self._reference_name
        if wanted is None and len(adapters) + len(others) != 1:
            found = ", ".join([*(f"adapter {n}" for n in adapters), *others]) or "none"
            raise ValueError(
                f"SyncReference: {type(pl_module).__name__} should hold one reference beside the policy, a "
                f"frozen model or adapter; it holds {found}. Give reference= the attribute or the adapter"
            )
        if wanted in adapters or (wanted is None and adapters):
            mine = adapter_tensors(model, wanted or adapters[0])
            theirs = adapter_tensors(model, active_adapter(model))
        else:
            other = find_model(pl_module, wanted) if wanted is not None else next(iter(others.values()))
            mine = dict(other.named_parameters())
            theirs = {name: p for name, p in model.named_parameters() if p.requires_grad}
        return _matched(mine, theirs)


def _matched(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    if any(mine.get(name) is p for name, p in theirs.items()):
        raise ValueError("SyncReference: the reference is the policy itself; give it a copy")
    unlike = [name for name, p in theirs.items() if name not in mine or mine[name].shape != p.shape]
    if unlike:
        raise ValueError(
            f"SyncReference: {len(unlike)} of {len(theirs)} trained weights have no counterpart in the "
            f"reference, such as {unlike[0]}: is it another architecture, or one without the adapters?"
        )
    return {name: (mine[name], p) for name, p in theirs.items()}
