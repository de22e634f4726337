"""Group relative policy optimisation and those that differ from it in bounds, level or weights alone."""

from torch import Tensor

from lit_align.losses.ppo import clipped_surrogate


def grpo(
    ratios: Tensor,
    advantages: Tensor,
    *,
    clip_range: float = 0.2,
    clip_range_high: float | None = None,
    delta: float | None = None,
) -> Tensor:
    """PPO's clipped surrogate, with a bound for bad tokens too.

    GRPO (arXiv 2402.03300) Eq. 3: ``-min(ρ A, clip(ρ, 1-ε, 1+ε_high) A)``. With ``delta``, the two-sided
    clipping of INTELLECT-2 (arXiv 2505.07291): ``-min(min(ρ, δ) A, clip(ρ, 1-ε, 1+ε_high) A)``, because for
    a bad token the minimum is not bounded: a ratio of 100 would weigh 100 times.

    Args:
        ratios: ``[N]`` importance ratios, of a token or of its completion.
        advantages: ``[N]``.
        clip_range: ε.
        clip_range_high: ε of the upper bound (clip-higher); the same where it is ``None``.
        delta: δ, above ``1 + ε_high``; no bound where it is ``None``.

    Returns:
        ``[N]`` one value per token.

    Raises:
        ValueError: where δ is not above ``1 + ε_high``: it would do the clipping.
    """
    if delta is None:
        return clipped_surrogate(ratios, advantages, clip_range=clip_range, clip_range_high=clip_range_high)
    high = 1 + (clip_range if clip_range_high is None else clip_range_high)
    if delta <= high:
        raise ValueError(f"delta must be above the upper clip bound {high:g}, got {delta:g}")
    # Below δ the cap changes nothing, and above it the clipped term does not see the cap.
    return clipped_surrogate(
        ratios.clamp(max=delta), advantages, clip_range=clip_range, clip_range_high=clip_range_high
    )
