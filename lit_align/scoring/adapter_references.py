"""References that a policy brings along by its adapters, and the one that is taken by default."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lit_align.models.config import ModelConfig
from lit_align.models.skeleton import as_on_zero
from lit_align.scoring.adapters import (
    active_adapter,
    adapter_off,
    adapter_on,
    evaluating,
    freeze_adapter,
    has_adapters,
    is_fresh,
    model_digest,
    only_adapters_train,
)
from lit_align.scoring.frozen_copy import FrozenCopy
from lit_align.scoring.policy import Policy
from lit_align.scoring.reference_base import Reference


class AdapterOff(Reference):
    """The base under a policy with adapters. No second model, and exactly the base."""

    moves = False

    def _attach(self, policy: Policy, config: ModelConfig | None) -> None:
        if not has_adapters(policy.model):
            raise ValueError(
                "AdapterOff: the policy has no adapters, so switching them off would give the policy itself. "
                "Use FrozenCopy, or give the policy LoRA"
            )
        if not only_adapters_train(policy.model):
            raise ValueError(
                "AdapterOff: weights of the base are trained too (bias, or weights unfrozen by hand), so the "
                "base would move. Use FrozenCopy"
            )

    @contextmanager
    def using(self) -> Iterator[Policy]:
        """The policy with its adapters off."""
        policy = self.policy
        with evaluating(policy), adapter_off(policy.model):
            yield policy

    def digest(self) -> str:
        """Of the base."""
        return model_digest(self.policy.model)


class NamedAdapter(Reference):
    """Another adapter on the policy's base, frozen.

    Args:
        name: an adapter the policy has, or the name to load ``path`` under.
        path: directory or Hub name of an adapter to load.
    """

    moves = False

    def __init__(self, name: str = "reference", path: str | None = None) -> None:
        super().__init__()
        self.name = name
        self.path = path

    def _attach(self, policy: Policy, config: ModelConfig | None) -> None:
        from lit_align.models.sources import resolve

        model: Any = policy.model
        if not has_adapters(model):
            raise ValueError("NamedAdapter: the policy has no adapters; use FromPath for another model")
        if self.path is not None:
            if self.name in model.peft_config:
                raise ValueError(
                    f"NamedAdapter: the policy has an adapter {self.name!r} already; take another name"
                )
            model.load_adapter(resolve(self.path), self.name, is_trainable=False)
        if self.name not in model.peft_config:
            known = ", ".join(model.peft_config)
            raise ValueError(f"NamedAdapter: the policy has no adapter {self.name!r} (it has {known})")
        if self.name == active_adapter(model):
            raise ValueError(
                f"NamedAdapter: {self.name!r} is the adapter that is trained, so the reference would move "
                "with it. Use FrozenCopy for its present weights"
            )
        freeze_adapter(model, self.name)

    @contextmanager
    def using(self) -> Iterator[Policy]:
        """The policy with the other adapter on."""
        policy = self.policy
        with evaluating(policy), adapter_on(policy.model, self.name):
            yield policy

    def digest(self) -> str:
        """Of the base and the adapter."""
        return model_digest(self.policy.model, self.name)


def default_reference(policy: Policy) -> Reference:
    """The reference that makes the first DPO loss ln 2.

    New adapters leave the model as it is until they learn, so the base with the adapter off is where training
    starts, and costs nothing. An adapter that has been trained already (one that is continued, or came with
    a module in memory) does change the model: there the start is that adapter, and the bare base would be
    another model. Then, and without adapters, it is a frozen copy of the weights in memory.

    Args:
        policy: the policy, before training.
    """
    model = policy.model
    if has_adapters(model) and as_on_zero(lambda: is_fresh(model)) and only_adapters_train(model):
        return AdapterOff()
    return FrozenCopy()
