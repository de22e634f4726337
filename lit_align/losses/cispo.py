"""CISPO: the weight is clipped, and not the token."""

from torch import Tensor

#: The largest ratio, unless another is given.
RATIO_CAP = 5.0


def cispo(ratios: Tensor, logps: Tensor, advantages: Tensor, *, ratio_cap: float = RATIO_CAP) -> Tensor:
    """Clipped importance sampling: every token keeps its gradient, with a bounded weight.

    MiniMax-M1 (arXiv 2506.13585) Eq. 4-5, with the upper bound alone: ``-sg(min(ρ, ε_high)) A log π``.

    Args:
        ratios: ``[N]`` importance ratios.
        logps: ``[N]`` log-probs of the sampled tokens.
        advantages: ``[N]``.
        ratio_cap: the largest ratio: the bound itself, not its distance from 1.

    Returns:
        ``[N]`` one value per token.

    Raises:
        ValueError: where the cap is not positive.
    """
    if ratio_cap <= 0:
        raise ValueError(f"cispo: ratio_cap must be positive, got {ratio_cap}")
    return -ratios.detach().clamp(max=ratio_cap) * advantages * logps
