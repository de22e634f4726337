"""Scoring with an encoder and a decoder: the prompt is read by one, the completion written by the other.

The encoder runs once per prompt, however many completions the prompt has.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lit_align.batches import Forest


def is_encoder_decoder(model: Any) -> bool:
    """Whether a model of transformers, with or without adapters, has an encoder and a decoder."""
    return bool(getattr(model.config, "is_encoder_decoder", False))


def decoder_output(model: Any, batch: Forest) -> Any:
    """The model's own output, its decoder fed with the completions behind their start token.

    Args:
        model: of transformers, with or without adapters.
        batch: the forest, with at least one completion token.

    Returns:
        An output whose logits are ``[C, L, V]``: column ``j`` is where token ``j`` of a completion is chosen.

    Raises:
        ValueError: a prompt is empty, or nothing says what a decoder starts with.
    """
    from transformers.modeling_outputs import BaseModelOutput

    encoded, mask = _encoded(_inner(model), batch)
    return model(
        encoder_outputs=BaseModelOutput(last_hidden_state=encoded),
        attention_mask=mask,
        decoder_input_ids=_shifted(batch, _start_token(_inner(model))),
        use_cache=False,
    )


def decoder_states(model: Any, batch: Forest) -> Tensor:
    """``[C, L, D]`` states of the decoder's last layer, in the columns of :func:`decoder_output`."""
    inner = _inner(model)
    encoded, mask = _encoded(inner, batch)
    output = inner.get_decoder()(
        input_ids=_shifted(batch, _start_token(inner)),
        encoder_hidden_states=encoded,
        encoder_attention_mask=mask,
        use_cache=False,
    )
    return output.last_hidden_state


def at_scored(columns: Tensor, batch: Forest) -> tuple[Tensor, Tensor]:
    """The columns in which tokens that weigh something are chosen.

    Args:
        columns: ``[C, L, ...]``, from :func:`decoder_output`.
        batch: the forest.

    Returns:
        ``[M, ...]``, and ``[M]`` places of these tokens among the ``N``.
    """
    scored = batch.weights.nonzero().squeeze(1)
    offsets = torch.tensor(batch.completion_offsets[:-1], device=batch.device)
    owner = batch.sequence[scored]
    return columns[owner, scored - offsets[owner]], scored


def _inner(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _encoded(inner: Any, batch: Forest) -> tuple[Tensor, Tensor]:
    """States ``[C, P, D]`` of each completion's prompt, encoded once, and their mask ``[C, P]``."""
    mask = _prompt_mask(batch)
    prompts = pad_sequence(list(batch.prompt_ids.split(list(batch.prompt_lengths))), batch_first=True)
    states = inner.get_encoder()(input_ids=prompts, attention_mask=mask).last_hidden_state
    parents = torch.tensor(batch.parents, device=batch.device)
    return states[parents], mask[parents]


def _shifted(batch: Forest, start: int) -> Tensor:
    first = batch.completion_ids.new_tensor([start])
    completions = batch.completion_ids.split(list(batch.completion_lengths))
    return pad_sequence([torch.cat((first, ids[:-1])) for ids in completions], batch_first=True)


def _prompt_mask(batch: Forest) -> Tensor:
    if 0 in batch.prompt_lengths:
        row = batch.rows[batch.prompt_lengths.index(0)]
        raise ValueError(
            f"row {row} has an empty prompt: the encoder of an encoder-decoder model has nothing to read; "
            "give every row a prompt"
        )
    lengths = torch.tensor(batch.prompt_lengths, device=batch.device)
    return (torch.arange(max(batch.prompt_lengths), device=batch.device) < lengths[:, None]).long()


def _start_token(inner: Any) -> int:
    for config in (inner.config, getattr(inner, "generation_config", None)):
        start = getattr(config, "decoder_start_token_id", None)
        if start is not None:
            return int(start)
    raise ValueError(
        f"{type(inner).__name__} does not say what its decoder starts with: set "
        "model.config.decoder_start_token_id"
    )
