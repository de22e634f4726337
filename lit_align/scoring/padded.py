"""The padded layout: rectangles, a mask, and the model's own forward.

The reference that every other layout is compared with, and the one that fits every architecture:
nothing is asked of a model but what its ``forward`` promises.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from lit_align.batches import Forest
from lit_align.functional.logprobs import token_statistics
from lit_align.outputs import Scores, Statistic
from lit_align.scoring import encoder_decoder


class Rectangle(NamedTuple):
    """A forest as right-padded rows, prompt and completion together.

    Attributes:
        input_ids: ``[C, L]``.
        attention_mask: ``[C, L]``, 1 on tokens.
        columns: ``[N]`` column of each completion token in its row.
        lengths: ``C`` lengths of the rows.
    """

    input_ids: Tensor
    attention_mask: Tensor
    columns: Tensor
    lengths: tuple[int, ...]


def rectangle(batch: Forest) -> Rectangle:
    """Lay a forest out in rows."""
    po, co = batch.prompt_offsets, batch.completion_offsets
    rows = [
        torch.cat((batch.prompt_ids[po[p] : po[p + 1]], batch.completion_ids[co[c] : co[c + 1]]))
        for c, p in enumerate(batch.parents)
    ]
    lengths = tuple(len(row) for row in rows)
    input_ids = pad_sequence(rows, batch_first=True) if rows else batch.completion_ids.new_zeros((0, 0))
    width = torch.arange(input_ids.shape[1], device=batch.device)
    mask = (width < torch.tensor(lengths, device=batch.device)[:, None]).long()
    # A token's column is its place in the flat completions, shifted by where its row starts them.
    shifts = [batch.prompt_lengths[p] - co[c] for c, p in enumerate(batch.parents)]
    place = torch.arange(len(batch.completion_ids), device=batch.device)
    columns = place + torch.tensor(shifts, dtype=torch.long, device=batch.device)[batch.sequence]
    return Rectangle(input_ids, mask, columns, lengths)


def score(
    model: nn.Module,
    batch: Forest,
    statistics: frozenset[Statistic] = frozenset(),
    temperature: float = 1.0,
    value_head: nn.Module | None = None,
) -> Scores:
    """Log-probs of the tokens that weigh something, by plain autograd through the model's logits.

    Args:
        model: a causal language model of transformers, with or without adapters.
        batch: the forest.
        statistics: what to return beside the log-probs.
        temperature: the logits are divided by it.
        value_head: from ``[M, D]`` states to ``[M]`` values of them.
    """
    if not batch.num_tokens:
        nothing = torch.zeros_like(batch.weights)
        return Scores(logps=nothing, values=None if value_head is None else nothing)
    extra: dict[str, Any] = {}
    if "router_loss" in statistics:
        decodes = encoder_decoder.is_encoder_decoder(base_model(model))
        if decodes or "output_router_logits" not in _accepted(model):
            raise ValueError(
                f"{type(model).__name__} has no router loss: it is no decoder, or not a mixture of experts"
            )
        extra["output_router_logits"] = True
    with last_hidden_state(model if value_head is not None else None) as states:
        picked, scored, output = scored_logits(model, batch, **extra)
    if temperature != 1.0:
        picked = picked / temperature
    wanted = frozenset(statistics - {"router_loss"})
    found = token_statistics(picked, batch.completion_ids[scored], wanted)
    if value_head is not None:
        found["values"] = value_head(_predicting(model, states[0], batch)[0])
    full = {name: _scatter(value, scored, len(batch.completion_ids)) for name, value in found.items()}
    return Scores(**full, router_loss=output.aux_loss if "router_loss" in statistics else None)


def scored_logits(model: nn.Module, batch: Forest, **extra: Any) -> tuple[Tensor, Tensor, Any]:
    """The logits that predict the tokens that weigh something.

    Args:
        model: a causal language model of transformers, with or without adapters.
        batch: the forest, not empty.
        extra: more arguments of the model's ``forward``.

    Returns:
        ``[M, V]`` logits, ``[M]`` places of their tokens among the ``N``, and the model's whole output.
    """
    if encoder_decoder.is_encoder_decoder(base_model(model)):
        output = encoder_decoder.decoder_output(model, batch)
        return *encoder_decoder.at_scored(output.logits, batch), output
    rows = rectangle(batch)
    # Only columns that predict a completion token need logits: with a vocabulary of 100k that is
    # most of the memory.
    first, last = _predicting_columns(batch)
    keeps = "logits_to_keep" in _accepted(model)
    if keeps:
        extra["logits_to_keep"] = torch.arange(first, last, device=batch.device)
    output = model(input_ids=rows.input_ids, attention_mask=rows.attention_mask, use_cache=False, **extra)
    logits = output.logits if keeps else output.logits[:, first:last]
    scored = batch.weights.nonzero().squeeze(1)
    return logits[batch.sequence[scored], rows.columns[scored] - 1 - first], scored, output


def predicting_states(model: nn.Module, batch: Forest) -> tuple[Tensor, Tensor]:
    """``[M, D]`` states that predict the tokens that weigh something, and ``[M]`` their tokens' places."""
    if encoder_decoder.is_encoder_decoder(base_model(model)):
        return _predicting(model, encoder_decoder.decoder_states(model, batch), batch)
    trunk = base_model(model).base_model
    rows = rectangle(batch)
    output = trunk(input_ids=rows.input_ids, attention_mask=rows.attention_mask, use_cache=False)
    return _predicting(model, output.last_hidden_state, batch)


def _predicting(model: nn.Module, hidden: Tensor, batch: Forest) -> tuple[Tensor, Tensor]:
    # Of the states of all columns, those in which a token that weighs something is chosen.
    if encoder_decoder.is_encoder_decoder(base_model(model)):
        return encoder_decoder.at_scored(hidden, batch)
    scored = batch.weights.nonzero().squeeze(1)
    return hidden[batch.sequence[scored], rectangle(batch).columns[scored] - 1], scored


@contextmanager
def last_hidden_state(model: nn.Module | None) -> Iterator[list[Tensor]]:
    """What the trunk hands to the head while the model runs its own forward inside the block.

    Asking for all hidden states would keep those of every layer.
    """
    found: list[Tensor] = []
    if model is None:
        yield found
        return

    def keep(module: nn.Module, arguments: Any, output: Any) -> None:
        found.append(output.last_hidden_state)

    inner = base_model(model)
    decodes = encoder_decoder.is_encoder_decoder(inner)
    trunk = inner.get_decoder() if decodes else inner.base_model
    handle = trunk.register_forward_hook(keep)
    try:
        yield found
    finally:
        handle.remove()


def last_states(model: nn.Module, batch: Forest) -> Tensor:
    """``[C, D]`` states of the last token of each document, after the last norm."""
    rows = rectangle(batch)
    hidden = (
        base_model(model)
        .base_model(input_ids=rows.input_ids, attention_mask=rows.attention_mask, use_cache=False)
        .last_hidden_state
    )
    last = torch.tensor(rows.lengths, device=batch.device) - 1
    return hidden[torch.arange(batch.num_completions, device=batch.device), last]


def _predicting_columns(batch: Forest) -> tuple[int, int]:
    prompts = [batch.prompt_lengths[p] for p in batch.parents]
    first = max(min(prompts, default=1) - 1, 0)
    last = max((p + c for p, c in zip(prompts, batch.completion_lengths, strict=True)), default=1) - 1
    return first, max(last, first)


def _scatter(values: Tensor, index: Tensor, length: int) -> Tensor:
    return values.new_zeros(length).index_put((index,), values)


def _accepted(model: nn.Module) -> frozenset[str]:
    # PEFT wraps the model and passes everything on, so it is the wrapped forward that decides.
    return frozenset(inspect.signature(base_model(model).forward).parameters)


def base_model(model: Any) -> Any:
    """The model of transformers inside its adapters, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
