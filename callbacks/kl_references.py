"""What `KLTracker` compares a policy with."""

import copy
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from lit_align.batches import Forest
from lit_align.callbacks.sharding import is_sharded
from lit_align.callbacks.whole_model import sharded_copy
from lit_align.functional import kl
from lit_align.functional.logprobs import target_logps
from lit_align.scoring.adapters import adapter_off, evaluating
from lit_align.scoring.padded import scored_logits


class KLReference(ABC):
    """Says how far each scored token of the policy is from it; all estimates carry no gradient."""

    #: Names of the estimates.
    estimates: tuple[str, ...] = ("k1", "k3", "full")

    def divergences(self, model: Any, batch: Forest, keys: range | None = None) -> dict[str, Tensor]:
        """Divergence of the model per token.

        Args:
            model: the policy.
            batch: the forest.
            keys: numbers of the rows, where they are fixed ones.

        Returns:
            ``[M]`` for each of :attr:`estimates`, in nats, for the tokens that weigh something.
        """
        with torch.no_grad():
            with evaluating(model):
                logits, scored, _ = scored_logits(model, batch)
            targets = batch.completion_ids[scored]
            reference = self.logits(model, batch)
            full = [kl.full(*rows) for rows in zip(logits.split(256), reference.split(256), strict=True)]
            logps, reference_logps = target_logps(logits, targets), target_logps(reference, targets)
            return {
                "k1": kl.k1(logps, reference_logps),
                "k3": kl.k3(logps, reference_logps),
                "full": torch.cat(full) if full else torch.zeros_like(logps),
            }

    @abstractmethod
    def logits(self, model: Any, batch: Forest) -> Tensor:
        """``[M, V]`` logits of the reference."""


class AdapterOff(KLReference):
    """The base under the adapters; costs no memory."""

    def logits(self, model: Any, batch: Forest) -> Tensor:
        """With the adapters off."""
        with evaluating(model), adapter_off(model):
            return scored_logits(model, batch)[0]


class OtherModel(KLReference):
    """Another model: a copy of the policy, or one from a checkpoint.

    Args:
        model: is frozen, and put into evaluation mode.
    """

    def __init__(self, model: Any) -> None:
        self.model = model.requires_grad_(False).eval()

    @classmethod
    def copy_of(cls, model: Any) -> "OtherModel":
        """The weights as they are now; of a sharded model in shards, too. Collective where it is sharded."""
        return cls(sharded_copy(model) if is_sharded(model) else copy.deepcopy(model))

    @classmethod
    def from_path(cls, path: str) -> "OtherModel":
        """A directory, a shipped name or a name on the Hub."""
        from lit_align.models.build import build_causal_lm

        return cls(build_causal_lm(path))

    def logits(self, model: Any, batch: Forest) -> Tensor:
        """Of the other model, on the device of the batch."""
        self.model.to(batch.device)
        return scored_logits(self.model, batch)[0]


class Cached(KLReference):
    """The log-probs that the policy had at its start, of fixed rows: no second model, and no full KL."""

    estimates = ("k1", "k3")

    def __init__(self) -> None:
        #: ``[M]`` float32 on the host, by the number of the chunk's first row.
        self.logps: dict[int, Tensor] = {}

    @torch.no_grad()
    def remember(self, model: Any, batch: Forest, keys: range) -> None:
        """Keep what the model says of some rows."""
        self.logps[keys.start] = self._logps(model, batch).float().cpu()

    def divergences(self, model: Any, batch: Forest, keys: range | None = None) -> dict[str, Tensor]:
        """k1 and k3 of fixed rows."""
        assert keys is not None
        with torch.no_grad():
            logps, reference = self._logps(model, batch).float(), self.logps[keys.start]
        if len(logps) != len(reference):
            raise ValueError(
                f"the checkpoint holds {len(reference)} log-probs of the rows from {keys.start}, which have "
                f"{len(logps)} tokens now: are the rows, the tokenizer or batch_size others?"
            )
        reference = reference.to(logps.device)
        return {"k1": kl.k1(logps, reference), "k3": kl.k3(logps, reference)}

    def logits(self, model: Any, batch: Forest) -> Tensor:
        """There are none."""
        raise NotImplementedError("log-probs of single tokens are all that was kept")

    def _logps(self, model: Any, batch: Forest) -> Tensor:
        with evaluating(model):
            logits, scored, _ = scored_logits(model, batch)
        return target_logps(logits, batch.completion_ids[scored])
