"""Noise contrastive alignment: the likelihood of each completion, not only their difference."""

import torch.nn.functional as F
from torch import Tensor


def nca_pair(chosen_logratios: Tensor, rejected_logratios: Tensor, *, beta: float) -> Tensor:
    """Noise Contrastive Alignment for pairs.

    NCA (arXiv 2402.05369), the pairwise form, with ``r = βΔ``:
    ``-log σ(r_w) - ½ log σ(-r_w) - ½ log σ(-r_l)``.

    Args:
        chosen_logratios: ``[B]`` Δ of the preferred completions.
        rejected_logratios: ``[B]`` Δ of the others.
        beta: strength of the pull to the reference.

    Returns:
        ``[B]``.
    """
    chosen, rejected = beta * chosen_logratios, beta * rejected_logratios
    return -F.logsigmoid(chosen) - 0.5 * F.logsigmoid(-chosen) - 0.5 * F.logsigmoid(-rejected)
