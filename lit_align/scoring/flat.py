"""Scoring in the flat layout: no padding, each prompt once, only scored positions at the head."""

from typing import Any

import torch
from torch import Tensor, nn

from lit_align.batches import Forest
from lit_align.functional.logprobs import token_statistics
from lit_align.outputs import LossOutput, Scores, Statistic
from lit_align.scoring.attention import carrier
from lit_align.scoring.blocks import blocks
from lit_align.scoring.head import Loss, chunk_rows, head_loss, head_scores, plain_head
from lit_align.scoring.head_gradient import HeadGradient, embedding_joins
from lit_align.scoring.layout import FlatLayout
from lit_align.scoring.padded import base_model
from lit_align.scoring.router import balance_loss


def hidden_states(
    model: nn.Module, layout: FlatLayout, places: Tensor | None = None, cache: Any = None
) -> Tensor:
    """States of the last layer, after its norm.

    Args:
        model: with or without adapters.
        layout: of the row.
        places: ``[M]`` places in the row whose states are wanted, where that is not all.
        cache: is given the keys and values of every layer, as a cache of transformers is.

    Returns:
        ``[M, D]``, or ``[T, D]`` without ``places``.
    """
    return _run(model, layout, places, past_key_values=cache, use_cache=cache is not None)[0]


def _run(model: nn.Module, layout: FlatLayout, places: Tensor | None, **options: Any) -> tuple[Tensor, Any]:
    trunk = base_model(model).base_model
    carried = layout if places is None or not len(places) else layout.at(places)
    output = trunk(
        input_ids=layout.input_ids,
        attention_mask=carrier(carried),
        position_ids=layout.position_ids,
        **options,
    )
    states = output.last_hidden_state[0]
    if places is None:
        return states, output
    # A model whose last layer knows nothing of rows gives the states of all.
    if carried.rows is None or len(states) == layout.input_ids.shape[1]:
        return states[places], output
    return states[carried.rows.found], output


def next_logits(model: Any, states: Tensor, temperature: float = 1.0) -> Tensor:
    """``[M, V]`` logits of what comes after each of the ``[M, D]`` states, divided by the temperature."""
    inner = base_model(model)
    logits = inner.get_output_embeddings()(states)
    head = plain_head(inner, temperature)
    if head is None:
        return logits if temperature == 1.0 else logits / temperature
    logits = logits if head.softcap is None else head.softcap * torch.tanh(logits / head.softcap)
    return logits if head.scale == 1.0 else logits * head.scale


def score(
    model: Any,
    batch: Forest,
    layout: FlatLayout,
    statistics: frozenset[Statistic] = frozenset(),
    temperature: float = 1.0,
    value_head: nn.Module | None = None,
) -> Scores:
    """Log-probs of the tokens that weigh something, with plain autograd where gradients are on.

    With a value head, from ``[M, D]`` states to ``[M]``, the values of the same states too.
    """
    balanced = "router_loss" in statistics
    statistics = frozenset(statistics - {"router_loss"})
    options = {"output_router_logits": True} if balanced else {}
    states, output = _run(model, layout, layout.predictors, use_cache=False, **options)
    targets = batch.completion_ids[layout.scored]
    head = plain_head(base_model(model), temperature)
    if head is not None and not torch.is_grad_enabled():
        found = head_scores(states, head, targets, statistics)
    else:
        found = token_statistics(next_logits(model, states, temperature), targets, statistics)
    if value_head is not None:
        found["values"] = value_head(states)
    size = len(batch.completion_ids)
    full = {n: v.new_zeros(size).index_put((layout.scored,), v) for n, v in found.items()}
    router_loss = balance_loss(base_model(model), batch, output.router_logits) if balanced else None
    return Scores(**full, router_loss=router_loss)


def score_loss(
    model: Any,
    batch: Forest,
    layout: FlatLayout,
    loss: Loss,
    statistics: frozenset[Statistic] = frozenset(),
    temperature: float = 1.0,
    couples_batch: bool = False,
    value_head: nn.Module | None = None,
    gradient: HeadGradient | None = None,
) -> LossOutput:
    """A loss of the log-probs, through the fused head where the head is one matrix."""
    head = plain_head(base_model(model), temperature)
    # A router's loss is one of the whole batch, made beside the head.
    if head is None or "router_loss" in statistics:
        return loss(score(model, batch, layout, statistics, temperature, value_head), batch)
    gradient = gradient or HeadGradient()
    with embedding_joins(base_model(model), head.weight, gradient):
        states = hidden_states(model, layout, layout.predictors)
    targets = batch.completion_ids[layout.scored]
    parts = blocks(batch, layout.scored, chunk_rows(len(head.weight)), couples_batch)
    values = None if value_head is None else value_head(states)
    return head_loss(states, head, targets, parts, loss, statistics, values, gradient)
