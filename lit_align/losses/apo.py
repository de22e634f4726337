"""Anchored preference optimisation: where the likelihoods go, not only how far apart."""

from torch import Tensor


def apo_zero(chosen_logratios: Tensor, rejected_logratios: Tensor, *, beta: float) -> Tensor:
    """Anchored Preference Optimization, zero: preferred completions up, the others down.

    APO (arXiv 2408.06266) Eq. 7: ``1 - σ(βΔ_w) + σ(βΔ_l)``. For data better than the policy.

    Args:
        chosen_logratios: ``[B]`` Δ of the preferred completions.
        rejected_logratios: ``[B]`` Δ of the others.
        beta: strength of the pull to the reference.

    Returns:
        ``[B]``; 1 where policy and reference are the same.
    """
    return (-beta * chosen_logratios).sigmoid() + (beta * rejected_logratios).sigmoid()


def apo_down(chosen_logratios: Tensor, rejected_logratios: Tensor, *, beta: float) -> Tensor:
    """Anchored Preference Optimization, down: both completions down, the rejected one further.

    APO (arXiv 2408.06266) Eq. 8: ``σ(βΔ_w) + 1 - σ(β(Δ_w - Δ_l))``. For data worse than the policy.

    Args:
        chosen_logratios: ``[B]`` Δ of the preferred completions.
        rejected_logratios: ``[B]`` Δ of the others.
        beta: strength of the pull to the reference.

    Returns:
        ``[B]``; 1 where policy and reference are the same.
    """
    lead = chosen_logratios - rejected_logratios
    return (beta * chosen_logratios).sigmoid() + (-beta * lead).sigmoid()
