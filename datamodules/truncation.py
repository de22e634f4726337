"""Rows cut to length, by rule and counted."""

from collections import Counter
from dataclasses import dataclass, replace

from lit_align.datamodules.bad_rows import DataError
from lit_align.datamodules.options import Truncation
from lit_align.datamodules.tokenize import Row


@dataclass(frozen=True)
class Limits:
    """How long a row may be, in tokens.

    Attributes:
        max_length: prompt and completion together; ``None`` for no limit. Completions lose their end.
        max_prompt_length: prompt alone; ``None`` for no limit of its own.
        keep: which end of a prompt stays. A BOS in front stays either way.
        bos: id of the BOS token, where the tokenizer has one.
    """

    max_length: int | None
    max_prompt_length: int | None
    keep: Truncation
    bos: int | None


def truncate(row: Row, limits: Limits, counts: Counter[str]) -> Row | None:
    """Cut one row.

    Args:
        row: a row as tokens.
        limits: how long it may be.
        counts: ``truncated_prompts``, ``truncated_completions`` and ``lost_to_truncation`` go up.

    Returns:
        The row, or ``None`` when a completion has nothing left to learn.
    """
    prompt = _cut_prompt(row.prompt, limits)
    counts["truncated_prompts"] += len(prompt) < len(row.prompt)
    if limits.max_length is None:
        return replace(row, prompt=prompt)
    room = max(0, limits.max_length - len(prompt))
    cut = [len(ids) > room for ids in row.completions]
    if not any(cut):
        return replace(row, prompt=prompt)
    completions = [ids[:room] for ids in row.completions]
    weights = [mass[:room] for mass in row.weights]
    emptied = any(not any(mass) and any(before) for mass, before in zip(weights, row.weights, strict=True))
    alike = len(row.completions) > 1 and all(ids == completions[0] for ids in completions)
    if emptied or alike:
        counts["lost_to_truncation"] += 1
        return None
    counts["truncated_completions"] += sum(cut)
    return replace(row, prompt=prompt, completions=completions, weights=weights)


def check_lost(counts: Counter[str], name: str, allowed: float, limits: Limits, longest_prompt: int) -> None:
    """Refuse to go on when truncation took more rows than allowed.

    Raises:
        DataError: with the counts, and what to change.
    """
    lost, read = counts["lost_to_truncation"], counts["rows_read"]
    if lost > allowed * read:
        raise DataError(
            f"{name}: {lost} of {read} rows ({lost / read:.1%}) have nothing left to learn when cut to "
            f"max_length={limits.max_length}, max_prompt_length={limits.max_prompt_length}; "
            f"the longest prompt has {longest_prompt} tokens. Raise max_length, cut prompts with "
            f"max_prompt_length, or let such rows go with allow_dropped: a fraction, now {allowed}"
        )


def _cut_prompt(prompt: list[int], limits: Limits) -> list[int]:
    longest = limits.max_prompt_length
    if longest is None or len(prompt) <= longest:
        return prompt
    if limits.keep == "keep_start":
        return prompt[:longest]
    if limits.bos is not None and prompt[0] == limits.bos:
        return [limits.bos, *prompt[len(prompt) - longest + 1 :]]
    return prompt[-longest:]
