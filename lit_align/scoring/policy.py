"""The policy: a language model that scores forests.

How a forest is laid out is the policy's affair; an algorithm sees log-probs per token. A loss is
handed in rather than applied to the result, so that a layout may run it piece by piece while the
logits are in cache, and so that everything happens inside one ``forward``, where sharded weights
are whole.
"""

from collections.abc import Callable
from typing import Literal, overload

import torch
from torch import Tensor, nn

from lit_align.batches import Forest
from lit_align.outputs import LossOutput, Scores, Statistic
from lit_align.scoring import flat, leak, padded, trunk
from lit_align.scoring.attention import FORMS, install
from lit_align.scoring.encoder_decoder import is_encoder_decoder
from lit_align.scoring.head import plain_head
from lit_align.scoring.head_gradient import HeadGradient
from lit_align.scoring.layout import FlatLayout, flat_layout
from lit_align.scoring.neftune import noisy_embeddings
from lit_align.scoring.router import balances

Layout = Literal["auto", "flat", "padded"]


class Scorer(nn.Module):
    """A model, and the choice of how batches are laid out for it.

    Args:
        model: of transformers, with or without adapters.
        layout: ``flat`` rows or ``padded`` rectangles; ``auto`` is flat where the model scores flat rows
            exactly, which it is asked at its first batch.
    """

    def __init__(self, model: nn.Module, layout: Layout = "auto") -> None:
        super().__init__()
        if layout != "padded":
            trunk.install(model)
        self.model = model
        self.layout = layout
        self._longest: int | None = None
        if layout == "flat":
            if is_encoder_decoder(padded.base_model(model)):
                raise ValueError(f"layout 'flat' is for decoders, and {type(model).__name__} has an encoder")
            if not install(padded.base_model(model)):
                raise ValueError(
                    f"layout 'flat' needs attention through one of {', '.join(FORMS)}, and "
                    f"{type(model).__name__} has another: give it attn_implementation sdpa, or take "
                    "layout 'auto'"
                )
            self._longest = leak.longest_document(model)

    def flat_layout(self, batch: Forest) -> FlatLayout | None:
        """The flat layout of a batch, or ``None`` where it has to be padded."""
        if self.layout == "auto":
            self.layout = "flat" if leak.fits(self.model) else "padded"
            self._longest = leak.longest_document(self.model)
        if self.layout == "padded" or not batch.num_tokens:
            return None
        # A sliding window is no window for documents that fit into it.
        return None if self._longest is not None and _longest(batch) > self._longest else flat_layout(batch)

    def outside_weights(self) -> list[nn.Parameter]:
        """Weights that are used while the scorer runs, outside of the modules that hold them: the head's."""
        head = padded.base_model(self.model).get_output_embeddings()
        return [] if head is None else list(head.parameters(recurse=False))

    def token_states(self, batch: Forest) -> tuple[Tensor, Tensor]:
        """The states in which tokens are chosen.

        Returns:
            ``[M, D]`` states of the last layer that predict the tokens that weigh something, and ``[M]``
            places of these tokens among the ``N``.
        """
        layout = self.flat_layout(batch)
        if layout is not None:
            return flat.hidden_states(self.model, layout, layout.predictors), layout.scored
        return padded.predicting_states(self.model, batch)

    def scored_logits(self, batch: Forest) -> Tensor:
        """``[M, V]`` logits that predict the tokens that weigh something; all at once, and padded."""
        return padded.scored_logits(self.model, batch)[0]

    def last_states(self, batch: Forest) -> Tensor:
        """``[C, D]`` states of the last layer at the last token of each document."""
        layout = self.flat_layout(batch)
        if layout is not None:
            return flat.hidden_states(self.model, layout, layout.last)
        return padded.last_states(self.model, batch)


class Policy(Scorer):
    """A language model that scores forests.

    Args:
        model: a language model of transformers, with or without adapters; of an encoder-decoder the encoder
            reads the prompt, and the decoder writes the completion.
        neftune_alpha: noise on the embeddings while training (NEFTune), ``None`` for none.
        layout: see :class:`Scorer`.
    """

    def __init__(self, model: nn.Module, neftune_alpha: float | None = None, layout: Layout = "auto") -> None:
        super().__init__(model, layout)
        if neftune_alpha is not None and is_encoder_decoder(padded.base_model(model)):
            raise ValueError("neftune_alpha is for decoders: leave it out for an encoder-decoder model")
        self.neftune_alpha = neftune_alpha
        #: From the states ``[*, D]`` that the model's head sees to values ``[*]``; see ``ActorCritic``.
        self.value_head: nn.Module | None = None
        #: Where micro-batches of a step collect the gradient of the head; ``None`` for each its own.
        self.head_gradient: HeadGradient | None = None

    @overload
    def forward(
        self,
        batch: Forest,
        *,
        loss: None = None,
        statistics: frozenset[Statistic] = ...,
        temperature: float = ...,
        couples_batch: bool = ...,
    ) -> Scores: ...

    @overload
    def forward(
        self,
        batch: Forest,
        *,
        loss: Callable[[Scores, Forest], LossOutput],
        statistics: frozenset[Statistic] = ...,
        temperature: float = ...,
        couples_batch: bool = ...,
    ) -> LossOutput: ...

    def forward(
        self,
        batch: Forest,
        *,
        loss: Callable[[Scores, Forest], LossOutput] | None = None,
        statistics: frozenset[Statistic] = frozenset(),
        temperature: float = 1.0,
        couples_batch: bool = False,
    ) -> Scores | LossOutput:
        """Score a forest, and run a loss on the scores where one is given.

        Args:
            batch: the forest.
            loss: a function of the scores and the forest they belong to. It must be a sum over
                prompts (each with its completions), because a layout may call it on parts.
            statistics: what to compute beside the log-probs.
            temperature: the logits are divided by it.
            couples_batch: the loss is a function of the whole batch, and must not be called on parts.
        """
        # Some models make the router's loss inside their own forward only.
        fits = "router_loss" not in statistics or balances(padded.base_model(self.model))
        layout = self.flat_layout(batch) if fits else None
        lengths = _document_lengths(batch) if layout is None else layout.document_lengths
        with noisy_embeddings(self.model, lengths, self.neftune_alpha if self.training else None):
            if layout is not None and loss is not None:
                return flat.score_loss(
                    self.model,
                    batch,
                    layout,
                    loss,
                    statistics,
                    temperature,
                    couples_batch,
                    self.value_head,
                    self.head_gradient,
                )
            if layout is not None:
                return flat.score(self.model, batch, layout, statistics, temperature, self.value_head)
            scores = padded.score(self.model, batch, statistics, temperature, self.value_head)
        if loss is None:
            return scores
        output = loss(scores, batch)
        if self.head_gradient is None:
            return output
        head = plain_head(padded.base_model(self.model))
        if head is None:
            return output
        return output._replace(total=self.head_gradient.join(output.total, head.weight))


class RewardScorer(Scorer):
    """A sequence classifier with one output that scores whole sequences.

    Args:
        model: ``AutoModelForSequenceClassification`` with ``num_labels=1``, with or without adapters.
        layout: see :class:`Scorer`.
    """

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
        inner = padded.base_model(self.model)
        if hasattr(inner, "score"):
            rewards = inner.score(self.last_states(batch))
        else:
            # Encoders pool at their first token and need no position.
            rows = padded.rectangle(batch)
            rewards = self.model(input_ids=rows.input_ids, attention_mask=rows.attention_mask).logits
        rewards = rewards.squeeze(-1).float()
        return rewards if loss is None else loss(rewards, batch)


def _longest(batch: Forest) -> int:
    lengths = zip(batch.parents, batch.completion_lengths, strict=True)
    return max((batch.prompt_lengths[p] + own for p, own in lengths), default=0)


def _document_lengths(batch: Forest) -> Tensor:
    lengths = zip(batch.parents, batch.completion_lengths, strict=True)
    return torch.tensor([[batch.prompt_lengths[p] + own] for p, own in lengths], device=batch.device)
