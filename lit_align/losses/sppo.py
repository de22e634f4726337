"""Self-play preference optimisation: a regression of log-ratios to win rates."""

from torch import Tensor


def sppo_hard(chosen_logratios: Tensor, rejected_logratios: Tensor, *, beta: float) -> Tensor:
    """Self-Play Preference Optimization with hard win rates: 1 for the winner, 0 for the loser.

    SPPO (arXiv 2405.00675) Eq. 4.7 with ``η = 1/β``: ``(Δ_w - ½/β)² + (Δ_l + ½/β)²``.

    Args:
        chosen_logratios: ``[B]`` Δ of the preferred completions.
        rejected_logratios: ``[B]`` Δ of the others.
        beta: strength of the pull to the reference.

    Returns:
        ``[B]``.

    Raises:
        ValueError: where beta is not positive.
    """
    if beta <= 0:
        raise ValueError(f"sppo_hard: beta must be positive, the targets are ±1/(2 beta); got {beta}")
    return (chosen_logratios - 0.5 / beta) ** 2 + (rejected_logratios + 0.5 / beta) ** 2
