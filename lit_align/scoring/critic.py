"""Critics: what a state is worth, from a model of their own or from the policy's own states.

The value of a token is that of the state in which it is chosen: a linear function of the hidden state that
predicts it.
"""

from collections.abc import Callable
from typing import overload

import torch
from torch import Tensor, nn

from lit_align.batches import Forest
from lit_align.models.value_head import ValueHead
from lit_align.outputs import LossOutput
from lit_align.scoring.early_backward import early_backward
from lit_align.scoring.policy import Layout, Policy, Scorer


class Critic(Scorer):
    """A trunk of its own and a value head.

    Args:
        model: of transformers, with or without adapters; its own heads are not used.
        value_head: on the states of its last layer.
        layout: see :class:`~lit_align.scoring.policy.Scorer`.
    """

    def __init__(self, model: nn.Module, value_head: ValueHead, layout: Layout = "auto") -> None:
        super().__init__(model, layout)
        self.value_head = value_head

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
            loss: a function of the values and the forest. Its gradients are made at once: called before the
                policy, the activations of both are never in memory together.

        Returns:
            Float32 values, 0 where a token weighs nothing; or what ``loss`` returns.
        """
        if loss is None:
            return read_values(self, self.value_head, batch)
        trained = [p for p in self.parameters() if p.requires_grad]
        return early_backward(lambda: loss(read_values(self, self.value_head, batch), batch), trained)

    def final_values(self, batch: Forest) -> Tensor:
        """``[C]`` values of the states after the last token of each completion."""
        return read_final_values(self, self.value_head, batch)


class ActorCritic(Policy):
    """A policy with a value head on its own states: scored as a policy, with ``Scores.values`` filled.

    Args:
        model: a language model of transformers, with or without adapters.
        value_head: on the states that the model's own head sees.
        neftune_alpha: see :class:`~lit_align.scoring.policy.Policy`.
        layout: see :class:`~lit_align.scoring.policy.Scorer`.
    """

    value_head: ValueHead

    def __init__(
        self,
        model: nn.Module,
        value_head: ValueHead,
        neftune_alpha: float | None = None,
        layout: Layout = "auto",
    ) -> None:
        super().__init__(model, neftune_alpha, layout)
        self.value_head = value_head

    def final_values(self, batch: Forest) -> Tensor:
        """``[C]`` values of the states after the last token of each completion."""
        return read_final_values(self, self.value_head, batch)


def read_values(scorer: Scorer, value_head: nn.Module, batch: Forest) -> Tensor:
    """Values ``[N]`` of the states of a scorer, 0 where a token weighs nothing.

    Args:
        scorer: whose states.
        value_head: from ``[M, D]`` states to ``[M]`` values.
        batch: the forest.
    """
    if not batch.num_tokens:
        return torch.zeros_like(batch.weights)
    states, scored = scorer.token_states(batch)
    found = value_head(states)
    return found.new_zeros(len(batch.completion_ids)).index_put((scored,), found)


def read_final_values(scorer: Scorer, value_head: nn.Module, batch: Forest) -> Tensor:
    """Values ``[C]`` of the states after the last token of each completion.

    They are what a completion was still worth where it was cut off
    (:func:`lit_align.functional.gae.gae`, ``final_values``).

    Args:
        scorer: whose states.
        value_head: from ``[C, D]`` states to ``[C]`` values.
        batch: the forest; no completion in it is empty.
    """
    values: Tensor = value_head(scorer.last_states(batch))
    return values
