"""References that begin as a copy of the policy's weights in memory: one that stays, one that follows."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lit_align.models.config import ModelConfig
from lit_align.runtime.zero_state import gathered
from lit_align.scoring.adapters import (
    active_adapter,
    adapter_names_of,
    adapter_on,
    adapter_tensors,
    evaluating,
    has_adapters,
    model_digest,
    only_adapters_train,
    snapshot_adapter,
)
from lit_align.scoring.policy import Policy
from lit_align.scoring.reference_base import Reference


class FrozenCopy(Reference):
    """The policy's weights in memory at the moment of :meth:`attach`, whatever file they came from.

    Under adapters the base does not change, so only the adapter is copied, as a frozen second adapter on the
    same base; otherwise the whole model is.
    """

    moves = False

    def __init__(self) -> None:
        super().__init__()
        self.frozen: Policy | None = None
        self.adapter: str | None = None

    def _attach(self, policy: Policy, config: ModelConfig | None) -> None:
        if has_adapters(policy.model) and only_adapters_train(policy.model):
            self.adapter = snapshot_adapter(policy.model)
        else:
            self.frozen = copy.deepcopy(policy).requires_grad_(False).eval()
            self.frozen.zero_grad(set_to_none=True)

    @contextmanager
    def using(self) -> Iterator[Policy]:
        """The copy, or the policy with the adapter's copy on."""
        if self.frozen is not None:
            yield self.frozen
            return
        policy = self.policy
        if self.adapter is None:
            raise RuntimeError(
                f"{type(self).__name__} is not attached to a policy: call attach(policy) first"
            )
        with evaluating(policy), adapter_on(policy.model, self.adapter):
            yield policy

    def digest(self) -> str:
        """Of the copy."""
        if self.frozen is not None:
            return model_digest(self.frozen.model)
        assert self.adapter is not None
        return model_digest(self.policy.model, self.adapter)


class EMA(FrozenCopy):
    """A reference that follows the policy (TR-DPO, Gorbatovski et al. 2024, arXiv 2404.09656).

    Every ``interval`` optimiser steps ``reference <- (1 - alpha) reference + alpha policy`` (equation 4);
    ``alpha=1`` is the paper's hard update. Under adapters only the adapter is averaged.

    Args:
        alpha: weight of the policy.
        interval: optimiser steps between two updates.
    """

    moves = True

    synced_at: Tensor

    def __init__(self, alpha: float = 0.6, interval: int = 512) -> None:
        super().__init__()
        if not 0 < alpha <= 1:
            raise ValueError(f"EMA: alpha is {alpha}; it must be above 0 and at most 1")
        if interval < 1:
            raise ValueError(f"EMA: interval is {interval}; it must be at least 1 optimiser step")
        self.alpha = alpha
        self.interval = interval
        # In the checkpoint: a resumed run must not mix in the same step twice.
        self.register_buffer("synced_at", torch.zeros((), dtype=torch.long))

    def after_step(self, policy: Policy, step: int) -> None:
        """Mix the policy in when the interval is over; calls with the same step count once."""
        if step % self.interval or step == int(self.synced_at):
            return
        with torch.no_grad():
            for mine, theirs in self._pairs(policy):
                with gathered(mine, writing=True), gathered(theirs):
                    # In float32, because (1 - alpha) of a bfloat16 weight is rounded away.
                    mine.copy_(mine.float().lerp(theirs.detach().float(), self.alpha))
        self.synced_at.fill_(step)

    def saved_names(self, own: str = "reference", policy: str = "policy") -> frozenset[str]:
        """The averaged tensors, and the step of the last update."""
        names = {f"{own}.synced_at"}
        if self.adapter is not None:
            names |= {f"{policy}.model.{name}" for name in adapter_names_of(self.policy.model, self.adapter)}
        elif self.frozen is not None:
            moving = _trainable(self.policy)
            names |= {
                f"{own}.frozen.{name}" for name, _ in self.frozen.named_parameters() if _bare(name) in moving
            }
        return frozenset(names)

    def digest(self) -> str:
        """Refused: it moves."""
        raise ValueError("EMA moves with the policy, so its log-probs cannot be cached; leave Cached out")

    def _pairs(self, policy: Policy) -> list[tuple[Tensor, Tensor]]:
        if self.adapter is not None:
            theirs = adapter_tensors(policy.model, active_adapter(policy.model))
            return [(t, theirs[key]) for key, t in adapter_tensors(policy.model, self.adapter).items()]
        if self.frozen is None:
            raise RuntimeError("EMA is not attached to a policy: call attach(policy) first")
        mine = {_bare(name): p for name, p in self.frozen.named_parameters()}
        return [(mine[name], p) for name, p in _trainable(policy).items()]


def _trainable(policy: nn.Module) -> dict[str, Tensor]:
    return {_bare(name): p for name, p in policy.named_parameters() if p.requires_grad}


def _bare(name: str) -> str:
    # torch.compile puts a wrapper into the path of a compiled module.
    return name.replace("_orig_mod.", "")
