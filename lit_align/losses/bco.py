"""Binary classifier optimisation: is this completion a good one, yes or no."""

import torch.nn.functional as F
from torch import Tensor


def bco_pair(chosen_logratios: Tensor, rejected_logratios: Tensor, *, beta: float) -> Tensor:
    """Binary Classifier Optimization for pairs, without the reward shift.

    BCO (arXiv 2404.04656), its binary cross-entropy at δ = 0, with ``r = βΔ``:
    ``-log σ(r_w) - log σ(-r_l)``.

    The paper's shift δ is a running mean of the rewards, which a pure function cannot hold; for pairs
    it is left out.

    Args:
        chosen_logratios: ``[B]`` Δ of the preferred completions.
        rejected_logratios: ``[B]`` Δ of the others.
        beta: strength of the pull to the reference.

    Returns:
        ``[B]``; ``2 log 2`` where policy and reference are the same.
    """
    return -F.logsigmoid(beta * chosen_logratios) - F.logsigmoid(-beta * rejected_logratios)
