"""DiscoPOP: a preference loss that a language model found."""

import torch.nn.functional as F
from torch import Tensor


def discopop(chosen_scores: Tensor, rejected_scores: Tensor, *, beta: float, tau: float = 0.05) -> Tensor:
    """Log-ratio modulated loss: logistic for small leads, exponential for large ones.

    DiscoPOP (arXiv 2406.08414), LRML, with ``x = β(s_w - s_l)`` and ``m = σ(x/τ)``:
    ``-(1-m) log σ(x) + m e^(-x)``.

    Args:
        chosen_scores: ``[B]`` scores of the preferred completions.
        rejected_scores: ``[B]`` scores of the others.
        beta: strength of the pull to the reference.
        tau: how fast the one becomes the other.

    Returns:
        ``[B]``.

    Raises:
        ValueError: where tau is not positive.
    """
    if tau <= 0:
        raise ValueError(f"discopop: tau must be positive, the lead is divided by it; got {tau}")
    lead = beta * (chosen_scores - rejected_scores)
    # m e^(-x) as one exponential: apart, the first is 0 and the second infinite for a large negative x.
    exponential = (F.logsigmoid(lead / tau) - lead).exp()
    return -(-lead / tau).sigmoid() * F.logsigmoid(lead) + exponential
