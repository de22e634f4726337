"""SAPO: a soft gate where others clip."""

import torch
from torch import Tensor


def sapo(
    ratios: Tensor,
    advantages: Tensor,
    *,
    temperature_positive: float = 1.0,
    temperature_negative: float = 1.05,
) -> Tensor:
    """Soft adaptive policy optimisation: the gradient fades as the ratio leaves 1.

    SAPO (arXiv 2511.20347): ``-(4/τ) σ(τ (ρ - 1)) A``, with a τ for good tokens and one for the others.
    At ratio 1 the gradient is that of ``-ρ A``; the value is ``-2 A / τ``.

    Args:
        ratios: ``[N]`` importance ratios.
        advantages: ``[N]``.
        temperature_positive: τ where the advantage is positive.
        temperature_negative: τ elsewhere; larger, so that bad tokens fade sooner.

    Returns:
        ``[N]`` one value per token.

    Raises:
        ValueError: where a temperature is not positive.
    """
    if temperature_positive <= 0 or temperature_negative <= 0:
        raise ValueError(
            f"sapo: temperatures must be positive, got {temperature_positive} and {temperature_negative}"
        )
    temperature = torch.full_like(ratios, temperature_negative).masked_fill(
        advantages > 0, temperature_positive
    )
    return -torch.sigmoid(temperature * (ratios - 1)) * (4 / temperature) * advantages
