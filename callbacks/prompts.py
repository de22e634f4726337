"""Fixed prompts for callbacks, with or without completions: from a list or from a file."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from lit_align.batches import Forest
from lit_align.rollouts.generate import Prompt, encode_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Row(NamedTuple):
    """A prompt, and its completion where there is one."""

    prompt: Prompt
    completion: str | None


def read_rows(source: str | Path | Sequence[Any], owner: str) -> list[Row]:
    """Rows from a list or a file.

    Args:
        source: prompts (texts, or conversations as lists of turns), or mappings with ``prompt`` and perhaps
            ``completion``; or a file: ``.jsonl`` with one such mapping a line, else a prompt a line.
        owner: who asks, for the errors.

    Raises:
        ValueError: there is no row, one is of another kind, or only some have completions.
    """
    place = "row"
    if isinstance(source, str | Path):
        place = f"{source}: line"
        lines = Path(source).expanduser().read_text(encoding="utf-8").splitlines()
        plain = not str(source).endswith(".jsonl")
        source = [line if plain else json.loads(line) for line in lines if line.strip()]
    rows = [_row(item, f"{owner}: {place} {number}") for number, item in enumerate(source, start=1)]
    if not rows:
        raise ValueError(f"{owner}: no prompts; give a list of texts or conversations, or a file of them")
    without = sum(row.completion is None for row in rows)
    if without not in (0, len(rows)):
        raise ValueError(
            f"{owner}: {without} of {len(rows)} rows have no completion; give all of them or none"
        )
    return rows


def encode_rows(tokenizer: "PreTrainedTokenizerBase", rows: Sequence[Row]) -> Forest:
    """Rows with completions as a forest; each completion ends with the EOS token."""
    prompts = [encode_prompt(tokenizer, row.prompt, index) for index, row in enumerate(rows)]
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    completions = []
    for row in rows:
        ids = list(tokenizer(str(row.completion), add_special_tokens=False)["input_ids"])
        completions.append([ids if ids[-1:] == end else ids + end])
    return Forest.from_lists(prompts, completions)


def forest_of(batch: Any, owner: str) -> Forest:
    """A batch of a data module as a forest: ours as it is, padded rectangles row by row.

    Args:
        batch: a `Forest`, or a mapping with ``input_ids`` and perhaps ``attention_mask`` and ``labels``
            (-100 where nothing is learned), each ``[B, L]``.
        owner: who asks, for the error.

    Raises:
        ValueError: the batch is of another kind.
    """
    if isinstance(batch, Forest):
        return batch
    if not isinstance(batch, Mapping) or getattr(batch.get("input_ids"), "ndim", 0) != 2:
        keys = ", ".join(map(str, batch)) if isinstance(batch, Mapping) else type(batch).__name__
        raise ValueError(
            f"{owner} reads a Forest, or a mapping with input_ids [B, L] (and attention_mask, labels); this "
            f"batch has {keys}. Give rows= of its own instead"
        )
    ids = batch["input_ids"]
    mask = batch.get("attention_mask")
    real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
    labels = batch.get("labels")
    learned = real if labels is None else real & (labels != -100)
    tokens = [row[keep].tolist() for row, keep in zip(ids, real, strict=True)]
    weights = [row[keep].float().tolist() for row, keep in zip(learned, real, strict=True)]
    forest = Forest.from_lists([[] for _ in tokens], [[row] for row in tokens], [[row] for row in weights])
    return forest.to(ids.device)


def _row(item: Any, place: str) -> Row:
    completion = None
    if isinstance(item, Mapping):
        if "prompt" not in item:
            raise ValueError(f"{place} has {', '.join(item)}; it needs prompt, and perhaps completion")
        item, completion = item["prompt"], item.get("completion")
    turns = isinstance(item, Sequence) and item and all(isinstance(t, Mapping) for t in item)
    if not (turns or isinstance(item, str)) or not isinstance(completion, str | None):
        kind = type(completion if completion is not None else item).__name__
        raise ValueError(f"{place} is a {kind}; a prompt is text or a list of turns, a completion is text")
    return Row(item, completion)
