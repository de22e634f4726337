"""Proximal policy optimisation: the clipped surrogate, and the value losses that go with it."""

import torch
from torch import Tensor


def clipped_surrogate(
    ratios: Tensor, advantages: Tensor, *, clip_range: float = 0.2, clip_range_high: float | None = None
) -> Tensor:
    """The policy loss of PPO: no gain from moving a ratio out of its range.

    PPO (arXiv 1707.06347) Eq. 7: ``-min(ρ A, clip(ρ, 1-ε, 1+ε) A)``; with another upper bound it is the
    clip-higher of DAPO (arXiv 2503.14476) Eq. 8.

    Args:
        ratios: ``[N]`` importance ratios ``π/π_old``.
        advantages: ``[N]``.
        clip_range: ε.
        clip_range_high: ε of the upper bound; the same where it is ``None``.

    Returns:
        ``[N]`` one value per token.
    """
    low, high = clip_bounds(clip_range, clip_range_high)
    return -torch.minimum(ratios * advantages, ratios.clamp(low, high) * advantages)


def clip_bounds(clip_range: float, clip_range_high: float | None = None) -> tuple[float, float]:
    """Lowest and highest ratio that clipping leaves alone.

    Raises:
        ValueError: where a range is negative.

    >>> clip_bounds(0.25, 0.5)
    (0.75, 1.5)
    """
    high = clip_range if clip_range_high is None else clip_range_high
    if clip_range < 0 or high < 0:
        raise ValueError(f"clip ranges must not be negative, got {clip_range} and {high}")
    return 1 - clip_range, 1 + high


def clipped_low(
    ratios: Tensor, advantages: Tensor, *, clip_range: float = 0.2, clip_range_high: float | None = None
) -> Tensor:
    """Where the lower bound takes the gradient away: a bad token, already much less likely.

    Args:
        ratios: ``[N]`` importance ratios.
        advantages: ``[N]``.
        clip_range: ε.
        clip_range_high: not used; so that both bounds take the same hyper-parameters.

    Returns:
        ``[N]`` bool.
    """
    return (ratios < clip_bounds(clip_range, clip_range_high)[0]) & (advantages < 0)


def clipped_high(
    ratios: Tensor, advantages: Tensor, *, clip_range: float = 0.2, clip_range_high: float | None = None
) -> Tensor:
    """Where the upper bound takes the gradient away: a good token, already much likelier.

    Args:
        ratios: ``[N]`` importance ratios.
        advantages: ``[N]``.
        clip_range: ε.
        clip_range_high: ε of the upper bound; the same where it is ``None``.

    Returns:
        ``[N]`` bool.
    """
    return (ratios > clip_bounds(clip_range, clip_range_high)[1]) & (advantages > 0)


def squared_error(values: Tensor, returns: Tensor) -> Tensor:
    """The value loss without clipping.

    A3C (arXiv 1602.01783): ``½ (V - R)²``.

    Args:
        values: ``[N]`` of the present critic.
        returns: ``[N]`` what it is to predict.

    Returns:
        ``[N]`` one value per token.
    """
    return 0.5 * (values - returns) ** 2


def clipped_squared_error(
    values: Tensor, old_values: Tensor, returns: Tensor, *, clip_range: float = 0.2
) -> Tensor:
    """The value loss with clipping: no gain from moving a value far in one round.

    OpenAI Baselines' PPO2, as in Ziegler et al. (arXiv 1909.08593):
    ``½ max((V - R)², (clip(V, V_old - ε, V_old + ε) - R)²)``.

    Args:
        values: ``[N]`` of the present critic.
        old_values: ``[N]`` of the critic at the time of the rollout.
        returns: ``[N]`` what it is to predict.
        clip_range: ε, in units of the return.

    Returns:
        ``[N]`` one value per token.
    """
    bounded = _bounded(values, old_values, clip_range)
    return 0.5 * torch.maximum((values - returns) ** 2, (bounded - returns) ** 2)


def values_clipped(values: Tensor, old_values: Tensor, returns: Tensor, *, clip_range: float = 0.2) -> Tensor:
    """Where clipping decides the value loss.

    Args:
        values: ``[N]`` of the present critic.
        old_values: ``[N]`` of the critic at the time of the rollout.
        returns: ``[N]`` what it is to predict.
        clip_range: ε, in units of the return.

    Returns:
        ``[N]`` bool.
    """
    bounded = _bounded(values, old_values, clip_range)
    return (bounded - returns) ** 2 > (values - returns) ** 2


def _bounded(values: Tensor, old_values: Tensor, clip_range: float) -> Tensor:
    if clip_range < 0:
        raise ValueError(f"the clip range of values must not be negative, got {clip_range}")
    return torch.clamp(values, old_values - clip_range, old_values + clip_range)
