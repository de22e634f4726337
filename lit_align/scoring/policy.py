"""The policy: a language model that scores forests.

How a forest is laid out is the policy's affair; an algorithm sees log-probs per token. A loss is
handed in rather than applied to the result, so that a layout may run it piece by piece while the
logits are in cache, and so that everything happens inside one ``forward``, where sharded weights
are whole.
"""

from collections.abc import Callable
from typing import overload

import torch
from torch import Tensor, nn

from lit_align.batches import Forest, LossOutput, Scores, Statistic
from lit_align.scoring import padded
from lit_align.scoring.neftune import noisy_embeddings


class Policy(nn.Module):
    """A causal language model that scores forests.

    Args:
        model: a causal language model of transformers, with or without adapters.
        neftune_alpha: noise on the embeddings while training (NEFTune), ``None`` for none.
    """

    def __init__(self, model: nn.Module, neftune_alpha: float | None = None) -> None:
        super().__init__()
        self.model = model
        self.neftune_alpha = neftune_alpha

    @overload
    def forward(
        self,
        batch: Forest,
        *,
        loss: None = None,
        statistics: frozenset[Statistic] = ...,
        temperature: float = ...,
    ) -> Scores: ...

    @overload
    def forward(
        self,
        batch: Forest,
        *,
        loss: Callable[[Scores, Forest], LossOutput],
        statistics: frozenset[Statistic] = ...,
        temperature: float = ...,
    ) -> LossOutput: ...

    def forward(
        self,
        batch: Forest,
        *,
        loss: Callable[[Scores, Forest], LossOutput] | None = None,
        statistics: frozenset[Statistic] = frozenset(),
        temperature: float = 1.0,
    ) -> Scores | LossOutput:
        """Score a forest, and run a loss on the scores where one is given.

        Args:
            batch: the forest.
            loss: a function of the scores and the forest they belong to. It must be a sum over
                prompts (each with its completions), because a layout may call it on parts.
            statistics: what to compute beside the log-probs.
            temperature: the logits are divided by it.
        """
        noise = self.neftune_alpha if self.training else None
        with noisy_embeddings(self.model, batch, noise):
            scores = padded.score(self.model, batch, statistics, temperature)
        return scores if loss is None else loss(scores, batch)


class RewardScorer(nn.Module):
    """A sequence classifier with one output that scores whole sequences.

    Args:
        model: ``AutoModelForSequenceClassification`` with ``num_labels=1``, with or without adapters.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    @overload
    def forward(self, batch: Forest, *, loss: None = None) -> Tensor: ...

    @overload
    def forward(self, batch: Forest, *, loss: Callable[[Tensor, Forest], LossOutput]) -> LossOutput: ...

    def forward(
        self, batch: Forest, *, loss: Callable[[Tensor, Forest], LossOutput] | None = None
    ) -> Tensor | LossOutput:
        """Rewards ``[C]`` in float32, or the loss of them.

        The score is read at the last token by position. The library's own classifier looks for the
        last id that is not the pad id, which is wrong as soon as a text may end in that id.
        """
        rows = padded.rectangle(batch)
        inner = padded.base_model(self.model)
        if hasattr(inner, "score"):
            hidden = inner.base_model(
                input_ids=rows.input_ids, attention_mask=rows.attention_mask, use_cache=False
            ).last_hidden_state
            last = torch.tensor(rows.lengths, device=batch.device) - 1
            each = torch.arange(batch.num_completions, device=batch.device)
            rewards = inner.score(hidden[each, last])
        else:
            # Encoders pool at their first token and need no position.
            rewards = self.model(input_ids=rows.input_ids, attention_mask=rows.attention_mask).logits
        rewards = rewards.squeeze(-1).float()
        return rewards if loss is None else loss(rewards, batch)
