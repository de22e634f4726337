"""What reward functions return, made alike, and what is wrong with it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lit_align.rewards.inputs import RewardError, RewardInputs


@dataclass(frozen=True)
class Failure:
    """One completion that a function left without a reward.

    Attributes:
        where: the prompt.
        problem: what happened.
    """

    where: str
    problem: str


@dataclass
class Judgement:
    """What one function says about a batch.

    Attributes:
        rewards: ``[C]`` float32, the sum over tokens where the function rewards tokens; NaN where there is
            no reward.
        tokens: for each completion its ``[T]`` rewards of tokens, or ``None``; ``None`` for all where the
            function rewards whole completions.
        failures: completions without a reward that should have one.
        reported: numbers that the function asked to report.
    """

    rewards: Tensor
    tokens: list[Tensor | None] | None = None
    failures: list[Failure] = field(default_factory=list)
    reported: dict[str, list[float]] = field(default_factory=dict)


def judgement(raw: Any, inputs: RewardInputs, name: str, none_is_failure: bool = True) -> Judgement:
    """Make one judgement of whatever a function returned.

    Args:
        raw: ``C`` numbers in a list, tensor or array; ``None`` or NaN where there is no reward; or, for each
            completion, one number per token.
        inputs: what the function was given.
        name: of the function.
        none_is_failure: whether ``None`` counts as a failure, as NaN and infinity do.

    Raises:
        RewardError: it is something else, or of another length.
    """
    values = _as_list(raw, name)
    if len(values) != len(inputs):
        raise RewardError(
            f"reward {name!r} returned {len(values)} rewards for {len(inputs)} completions; it has to return "
            "one for each, None where it has nothing to say"
        )
    made = Judgement(torch.full((len(values),), torch.nan))
    spread: list[Tensor | None] = [None] * len(values)
    by_token = False
    for i, value in enumerate(values):
        reward, tokens, problem = _one(value, len(inputs.completion_ids[i]), name)
        made.rewards[i] = reward
        spread[i] = tokens
        by_token = by_token or isinstance(value, Sequence)
        if problem is not None and (none_is_failure or value is not None):
            made.failures.append(Failure(inputs.where(i), problem))
    if by_token:
        if any(isinstance(value, int | float) for value in values):
            raise RewardError(
                f"reward {name!r} returned numbers for some completions and rewards of tokens for others"
            )
        made.tokens = spread
    return made


def all_failed(inputs: RewardInputs, problem: str) -> Judgement:
    """No rewards at all, for one reason."""
    failures = [Failure(inputs.where(i), problem) for i in range(len(inputs))]
    return Judgement(torch.full((len(inputs),), torch.nan), failures=failures)


def joined(parts: Sequence[tuple[Sequence[int], Judgement]], count: int) -> Judgement:
    """One judgement out of several, each with the completions it is about."""
    made = Judgement(torch.full((count,), torch.nan))
    tokens: list[Tensor | None] = [None] * count
    for indices, part in parts:
        made.rewards[list(indices)] = part.rewards
        made.failures += part.failures
        for key, values in part.reported.items():
            made.reported.setdefault(key, []).extend(values)
        for i, one in zip(indices, part.tokens or (), strict=False):
            tokens[i] = one
    if any(part.tokens is not None for _, part in parts):
        made.tokens = tokens
    return made


def _as_list(raw: Any, name: str) -> list[Any]:
    if callable(tolist := getattr(raw, "tolist", None)):
        # A tensor or an array; one column is as good as none.
        raw = tolist() if getattr(raw, "ndim", 1) < 2 or raw.shape[1] != 1 else raw.reshape(-1).tolist()
    if isinstance(raw, str) or not isinstance(raw, Sequence):
        raise RewardError(
            f"reward {name!r} returned {type(raw).__name__}; it has to return a list or tensor with one "
            "reward for each completion"
        )
    plain: list[Any] = []
    for value in raw:
        convert: Callable[[], Any] | None = getattr(value, "tolist", None)
        plain.append(convert() if callable(convert) else value)
    return plain


def _one(value: Any, length: int, name: str) -> tuple[float, Tensor | None, str | None]:
    """Reward, rewards of tokens, and what is wrong, of one completion."""
    if value is None:
        return math.nan, None, "returned None"
    if isinstance(value, int | float):
        number = float(value)
        return (number, None, None) if math.isfinite(number) else (math.nan, None, f"returned {number}")
    if isinstance(value, Sequence) and not isinstance(value, str):
        return _of_tokens(value, length, name)
    raise RewardError(f"reward {name!r} returned {value!r} among its rewards; a reward is a number or None")


def _of_tokens(value: Sequence[Any], length: int, name: str) -> tuple[float, Tensor | None, str | None]:
    if len(value) != length:
        raise RewardError(
            f"reward {name!r} returned {len(value)} rewards of tokens for a completion of {length} tokens"
        )
    if any(not isinstance(one, int | float) and one is not None for one in value):
        raise RewardError(f"reward {name!r} returned {value!r} as rewards of tokens; each is a number")
    tokens = torch.tensor([math.nan if one is None else float(one) for one in value], dtype=torch.float32)
    if not bool(tokens.isfinite().all()):
        return math.nan, None, "returned a token's reward that is not finite"
    return float(tokens.sum()), tokens, None
