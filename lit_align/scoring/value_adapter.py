"""A critic as an adapter on the policy's base: a trunk of its own for the price of an adapter."""

from collections.abc import Callable
from typing import Any, overload

from torch import Tensor, nn

from lit_align.batches import Forest
from lit_align.models.build import enable_checkpointing, is_checkpointed
from lit_align.models.config import LoraConfig
from lit_align.models.lora import peft_config
from lit_align.models.seeding import seeded
from lit_align.models.sources import resolve
from lit_align.models.value_head import ValueHeadConfig, build_value_head, load_value_head
from lit_align.outputs import LossOutput
from lit_align.scoring.adapter_loading import load_adapter
from lit_align.scoring.adapters import (
    active_adapter,
    adapter_lent,
    adapter_tensors,
    add_adapter,
    has_adapters,
    recomputing_with,
)
from lit_align.scoring.critic import read_final_values, read_values
from lit_align.scoring.early_backward import early_backward
from lit_align.scoring.policy import Policy


class ValueAdapter(nn.Module):
    """A second adapter on the policy's base, trained together with the policy's, and a value head.

    Called as a :class:`~lit_align.scoring.critic.Critic` is. The adapter's weights are part of the policy's
    model, trainable like those of the policy's adapter, and so in the same optimiser and checkpoint; the
    value head is part of this module. Whichever adapter is active, all flags stay as they are, and a
    checkpointed block is recomputed with the adapter that it was computed with.

    Args:
        policy: with adapters; held outside the module tree, so that no parameter is listed twice.
        lora: the adapter; by default it is made like the policy's.
        value_head: how the head starts.
        path: directory of a critic that was saved before (adapter and ``value_head.safetensors``), instead of
            a new one.
        name: that the adapter gets on the policy's model.
        seed: of the new adapter.

    Raises:
        ValueError: the policy has no adapters, or has one of that name.
    """

    #: Its model belongs to the policy, which spreads it over processes.
    shares_model = True

    def __init__(
        self,
        policy: Policy,
        lora: LoraConfig | None = None,
        value_head: ValueHeadConfig | None = None,
        path: str | None = None,
        name: str = "value",
        seed: int = 0,
    ) -> None:
        super().__init__()
        model: Any = policy.model
        if not has_adapters(model):
            raise ValueError(
                "a value adapter needs a base that stays as it is, but the policy has no adapters: give the "
                "policy LoRA, or take a critic with a model of its own"
            )
        self._policy = (policy,)
        self.adapter = name
        if path is not None:
            load_adapter(model, name, path, trainable=True)
        elif name in model.peft_config:
            raise ValueError(f"the policy has an adapter {name!r} already; give the critic's another name")
        else:
            like = model.peft_config[active_adapter(model)]
            task = str(getattr(like.task_type, "value", like.task_type))
            with seeded(seed):
                add_adapter(model, name, like if lora is None else peft_config(lora, task))
        # Set here and never again: peft would leave the active adapter alone trainable.
        for parameter in adapter_tensors(model, name).values():
            parameter.requires_grad_(True)
        head = value_head or ValueHeadConfig()
        self.value_head = (
            build_value_head(model, head)
            if path is None
            else load_value_head(model, resolve(path), head.dropout)
        )
        if is_checkpointed(model.get_base_model()):
            enable_checkpointing(model, recomputing_with(model))

    @property
    def model(self) -> nn.Module:
        """The policy's."""
        return self._policy[0].model

    @overload
    def forward(self, batch: Forest, *, loss: None = None) -> Tensor: ...

    @overload
    def forward(self, batch: Forest, *, loss: Callable[[Tensor, Forest], LossOutput]) -> LossOutput: ...

    def forward(
        self, batch: Forest, *, loss: Callable[[Tensor, Forest], LossOutput] | None = None
    ) -> Tensor | LossOutput:
        """Values ``[N]`` of the states in which the completion tokens are chosen, or the loss of them.

        Args:
            batch: the forest.
            loss: a function of the values and the forest. Its gradients are made at once, as a critic's are.
        """
        if loss is None:
            return self._values(batch)
        adapter = [p for p in adapter_tensors(self.model, self.adapter).values() if p.requires_grad]
        trained = [*adapter, *(p for p in self.value_head.parameters() if p.requires_grad)]
        return early_backward(lambda: loss(self._values(batch), batch), trained)

    def final_values(self, batch: Forest) -> Tensor:
        """``[C]`` values of the states after the last token of each completion."""
        (policy,) = self._policy
        with adapter_lent(policy.model, self.adapter):
            return read_final_values(policy, self.value_head, batch)

    def _values(self, batch: Forest) -> Tensor:
        (policy,) = self._policy
        with adapter_lent(policy.model, self.adapter):
            return read_values(policy, self.value_head, batch)
