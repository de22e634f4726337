"""What a reference is, and how one is described in plain data."""

import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lit_align.batches import Forest
from lit_align.models.config import ModelConfig
from lit_align.scoring.policy import Policy
from lit_align.scoring.reference_cache import weights_digest

#: Where the references of this package are found by name.
HOME = "lit_align.scoring.references"


class Reference(nn.Module):
    """Scores forests as the policy once did, or as another model does.

    Made from plain arguments, which :meth:`spec` gives back; it gets weights in :meth:`attach`. A model of
    its own is a submodule, so that it moves with the rest; the policy it shares is held outside the module
    tree, so that no parameter is listed twice.
    """

    #: Whether it may score otherwise after a step than before; ``SyncReference`` sets it on what it moves.
    moves = True

    def __init__(self) -> None:
        super().__init__()
        # A tuple is no submodule.
        self._policy: tuple[Policy, ...] = ()

    @property
    def policy(self) -> Policy:
        """The policy it is attached to."""
        if not self._policy:
            raise RuntimeError(f"{type(self).__name__} has no policy yet: call attach(policy) first")
        return self._policy[0]

    def attach(self, policy: Policy, config: ModelConfig | None = None) -> None:
        """Take what is needed from the policy, before it is trained. A second call does nothing.

        Args:
            policy: the policy at its start.
            config: what it was built from, ``None`` for a module in memory.
        """
        if self._policy:
            if self._policy[0] is not policy:
                raise RuntimeError(
                    f"this {type(self).__name__} belongs to another policy already; "
                    "make a new one for this policy"
                )
            return
        self._policy = (policy,)
        self._attach(policy, config)

    def score(self, batch: Forest, temperature: float = 1.0) -> Tensor:
        """Log-probs ``[N]`` of the completion tokens, without gradient, in eval mode.

        Args:
            batch: the forest.
            temperature: the logits are divided by it.
        """
        with torch.no_grad():
            return self._score(batch, temperature).detach()

    @contextmanager
    def using(self) -> Iterator[Policy]:
        """A policy that has the weights of the reference inside the block, in eval mode.

        Raises:
            ValueError: it has no weights, but log-probs of another origin.
        """
        raise ValueError(f"{type(self).__name__} has log-probs, but no weights to compute anything else with")
        yield

    def after_step(self, policy: Policy, step: int) -> None:
        """Called after each optimiser step with the number of steps taken so far."""

    def saved_names(self, own: str = "reference", policy: str = "policy") -> frozenset[str]:
        """Names of tensors that a checkpoint must hold beside the trainable ones.

        Args:
            own: where the reference stands in the module whose state dict is saved.
            policy: where the policy stands in it.
        """
        return frozenset()

    def digest(self) -> str:
        """A digest of the weights it scores with, for a cache."""
        raise ValueError(f"{type(self).__name__} has no fixed weights, so its log-probs cannot be cached")

    def flush(self) -> None:
        """Write to disk what is held back; called when a run or an epoch ends."""

    def spec(self) -> dict[str, Any]:
        """Plain data that describes it: ``class_path`` and ``init_args``."""
        names = [name for name in inspect.signature(type(self).__init__).parameters if name != "self"]
        values = {name: getattr(self, name) for name in names}
        plain = {k: v.spec() if isinstance(v, Reference) else v for k, v in values.items()}
        name = type(self).__qualname__
        public = getattr(sys.modules.get(HOME), name, None) is type(self)
        return {"class_path": f"{HOME if public else type(self).__module__}.{name}", "init_args": plain}

    def train(self, mode: bool = True) -> "Reference":
        """Stay in eval mode: a reference has no dropout, whoever puts its owner in train mode."""
        return super().train(False)

    def _score(self, batch: Forest, temperature: float) -> Tensor:
        with self.using() as scorer:
            return scorer(batch, temperature=temperature).logps

    def _attach(self, policy: Policy, config: ModelConfig | None) -> None: ...


class NoReference(Reference):
    """No reference: log-probs of 0, so that log-ratios are the policy's log-probs."""

    moves = False

    def _score(self, batch: Forest, temperature: float) -> Tensor:
        return torch.zeros(len(batch.completion_ids), device=batch.device)

    def digest(self) -> str:
        """Always the same."""
        return weights_digest({})


def build_reference(spec: "Reference | dict[str, Any]") -> Reference:
    """A reference from :meth:`Reference.spec`; a reference is returned as it is.

    Only classes that are imported already are found, so that a file cannot name code to run.
    """
    if isinstance(spec, Reference):
        return spec
    known = {cls.__qualname__: cls for cls in _subclasses(Reference)}
    path = spec["class_path"]
    module, _, name = path.rpartition(".")
    if name not in known or module not in ("", HOME, known[name].__module__):
        raise ValueError(f"no reference {path!r} (known: {', '.join(sorted(known))})")
    arguments = {
        name: build_reference(value) if isinstance(value, dict) and "class_path" in value else value
        for name, value in spec.get("init_args", {}).items()
    }
    return known[name](**arguments)


def _subclasses(cls: Any) -> list[type[Reference]]:
    return [found for sub in cls.__subclasses__() for found in (sub, *_subclasses(sub))]
