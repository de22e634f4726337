"""Identity preference optimisation: a regression of the lead to a finite target."""

from torch import Tensor


def ipo(
    chosen_scores: Tensor,
    rejected_scores: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    *,
    beta: float,
) -> Tensor:
    """Identity Preference Optimization, with scores per token.

    IPO (arXiv 2310.12036) Eq. 17: ``(s_w/|y_w| - s_l/|y_l| - 1/(2β))²``.

    The paper writes sums; its authors run it with means over the tokens, as here. For sums, give
    lengths of 1.

    Args:
        chosen_scores: ``[B]`` scores of the preferred completions.
        rejected_scores: ``[B]`` scores of the others.
        chosen_lengths: ``[B]`` completion tokens; 0 counts as 1, for a completion cut to nothing.
        rejected_lengths: ``[B]`` the same of the others.
        beta: strength of the pull to the reference, τ in the paper.

    Returns:
        ``[B]``.

    Raises:
        ValueError: where beta is not positive.
    """
    if beta <= 0:
        raise ValueError(f"ipo: beta must be positive, the target lead is 1/(2 beta); got {beta}")
    chosen = chosen_scores / chosen_lengths.clamp(min=1)
    rejected = rejected_scores / rejected_lengths.clamp(min=1)
    return (chosen - rejected - 1 / (2 * beta)) ** 2
