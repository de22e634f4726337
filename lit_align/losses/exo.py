"""Efficient exact optimisation: the reverse KL divergence to smoothed labels."""

import math

import torch.nn.functional as F
from torch import Tensor

from lit_align.losses.label_noise import check_label_smoothing


def exo_pair(
    chosen_scores: Tensor, rejected_scores: Tensor, *, beta: float, label_smoothing: float
) -> Tensor:
    """Efficient Exact Optimization for pairs: KL from the policy's preference to the smoothed label.

    EXO (arXiv 2402.00856) Eq. 16, with ``q = σ(β(s_w - s_l))``:
    ``q (log q - log(1-ε)) + (1-q) (log(1-q) - log ε)``.

    Args:
        chosen_scores: ``[B]`` scores of the preferred completions.
        rejected_scores: ``[B]`` scores of the others.
        beta: strength of the pull to the reference.
        label_smoothing: ε, the probability that a pair is labelled the wrong way round; not 0, which
            would make the divergence infinite.

    Returns:
        ``[B]``; 0 where the policy's preference is the label's, ``q = 1 - ε``.

    Raises:
        ValueError: where ε is not in ``(0, 0.5)``.
    """
    if label_smoothing == 0:
        raise ValueError(
            "exo_pair: label_smoothing must be above 0, the loss is infinite without it; "
            "the paper's value is 1e-3"
        )
    check_label_smoothing(label_smoothing, loss="exo_pair")
    lead = beta * (chosen_scores - rejected_scores)
    right = lead.sigmoid() * (F.logsigmoid(lead) - math.log1p(-label_smoothing))
    wrong = (-lead).sigmoid() * (F.logsigmoid(-lead) - math.log(label_smoothing))
    return right + wrong
