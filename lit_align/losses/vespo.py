"""VESPO: a smooth weight of whole completions."""

import torch
from torch import Tensor

from lit_align.functional.importance import sequence_sum_log_ratios


def vespo(
    logps: Tensor,
    old_logps: Tensor,
    advantages: Tensor,
    mask: Tensor,
    sequence: Tensor,
    completions: int,
    *,
    k_positive: float = 2.0,
    lambda_positive: float = 3.0,
    k_negative: float = 3.0,
    lambda_negative: float = 2.0,
) -> Tensor:
    """Variational sequence-level soft policy optimisation.

    VESPO (arXiv 2602.10693): ``-sg(φ(w)) A log π``, ``φ(w) = e^λ w^k e^(-λw)``, where ``w`` is the ratio of
    the whole completion (a product, not GSPO's mean), and k and λ go by the sign of the advantage.

    Args:
        logps: ``[N]`` log-probs of the sampled tokens.
        old_logps: ``[N]`` the same under the policy that sampled them.
        advantages: ``[N]``.
        mask: ``[N]`` non-zero where the policy chose the token.
        sequence: ``[N]`` index of the completion each token belongs to.
        completions: ``C``, the number of completions.
        k_positive: k where the advantage is not negative.
        lambda_positive: λ where the advantage is not negative.
        k_negative: k elsewhere.
        lambda_negative: λ elsewhere.

    Returns:
        ``[N]`` one value per token.
    """
    weights = completion_weights(
        logps,
        old_logps,
        advantages,
        mask,
        sequence,
        completions,
        k_positive=k_positive,
        lambda_positive=lambda_positive,
        k_negative=k_negative,
        lambda_negative=lambda_negative,
    )
    return -weights * advantages * logps


def completion_weights(
    logps: Tensor,
    old_logps: Tensor,
    advantages: Tensor,
    mask: Tensor,
    sequence: Tensor,
    completions: int,
    *,
    k_positive: float = 2.0,
    lambda_positive: float = 3.0,
    k_negative: float = 3.0,
    lambda_negative: float = 2.0,
) -> Tensor:
    """``[N]`` the weight ``φ(w)`` of the completion that each token belongs to, without gradient.

    Its arguments are those of :func:`vespo`.
    """
    log_ratios = sequence_sum_log_ratios(logps.detach(), old_logps, mask, sequence, completions)
    good = vespo_weights(log_ratios, k=k_positive, lambda_=lambda_positive)
    bad = vespo_weights(log_ratios, k=k_negative, lambda_=lambda_negative)
    return torch.where(advantages >= 0, good, bad)


def vespo_weights(log_ratios: Tensor, *, k: float, lambda_: float) -> Tensor:
    """The weight of a completion: 1 at ratio 1, largest at ratio k/λ, and 0 far from it.

    Args:
        log_ratios: ``log w``.
        k: power for small ratios.
        lambda_: decay for large ones.

    Returns:
        ``e^(λ + k log w - λ w)``, of the shape of the log-ratios, without gradient.

    Raises:
        ValueError: where k is negative or λ is not positive.

    >>> vespo_weights(torch.tensor([0.0, 100.0, -100.0]), k=2.0, lambda_=3.0)
    tensor([1., 0., 0.])
    """
    if k < 0 or lambda_ <= 0:
        raise ValueError(f"vespo: k must not be negative and lambda must be positive, got {k} and {lambda_}")
    # Above this the weight is 0 in any precision, and inf - inf would be no number.
    bounded = log_ratios.detach().clamp(max=80)
    return (lambda_ + k * bounded - lambda_ * bounded.exp()).exp()
