"""Rewards for the length of a completion, in tokens."""

from collections.abc import Sequence


def length_target(completion_ids: Sequence[Sequence[int]], *, target: int) -> list[float]:
    """1 for a completion of the wanted length, less in proportion to the distance, at least 0.

    ``r = max(0, 1 - |length - target| / target)``.

    Args:
        completion_ids: ``C`` completions.
        target: tokens, the stop token included.

    >>> length_target([[1] * 10, [1] * 5, [1] * 30], target=10)
    [1.0, 0.5, 0.0]
    """
    if target < 1:
        raise ValueError(f"length_target: target is {target}; it must be at least 1 token")
    return [max(0.0, 1 - abs(len(ids) - target) / target) for ids in completion_ids]


def overlong_penalty(completion_ids: Sequence[Sequence[int]], *, max_length: int, buffer: int) -> list[float]:
    """0 for a completion that leaves room, down to -1 for one that uses all of it.

    DAPO (arXiv 2503.14476) Eq. 13: 0 up to ``max_length - buffer`` tokens, from there
    ``((max_length - buffer) - length) / buffer``, and -1 above ``max_length``.

    Args:
        completion_ids: ``C`` completions.
        max_length: tokens at which the penalty is whole.
        buffer: tokens before that over which it grows.

    >>> overlong_penalty([[1] * n for n in (80, 90, 100, 120)], max_length=100, buffer=20)
    [0.0, -0.5, -1.0, -1.0]
    """
    if not 0 < buffer <= max_length:
        raise ValueError(f"overlong_penalty: buffer is {buffer}; it must be above 0 and at most {max_length}")
    start = max_length - buffer
    return [0.0 if len(ids) <= start else max(-1.0, (start - len(ids)) / buffer) for ids in completion_ids]
