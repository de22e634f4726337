"""f-DPO: other divergences than the reverse KL hold the policy to the reference.

f-DPO (arXiv 2309.16240), Theorem 1: the implicit reward is ``β f'(u)`` with ``u = π/π_ref = e^Δ``.
Each function here maps the log-ratio ``Δ`` to the score ``s = f'(e^Δ)``, up to a constant that a
difference of scores does not see.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def reverse_kl(logratios: Tensor) -> Tensor:
    """Reverse KL divergence, the one of DPO.

    f-DPO (arXiv 2309.16240), Table 1: ``Δ``.

    Args:
        logratios: ``[B]`` Δ of whole completions.

    Returns:
        ``[B]`` scores.
    """
    return logratios


def forward_kl(logratios: Tensor) -> Tensor:
    """Forward KL divergence.

    f-DPO (arXiv 2309.16240), Table 1: ``1 - e^(-Δ)``.

    Args:
        logratios: ``[B]`` Δ of whole completions; the exponent is cut where the dtype would overflow.

    Returns:
        ``[B]`` scores, at most 1.
    """
    return alpha_divergence(logratios, alpha=0.0)


def js_divergence(logratios: Tensor) -> Tensor:
    """Jensen-Shannon divergence.

    f-DPO (arXiv 2309.16240), Table 1: ``log 2 + log σ(Δ)``, which is ``log(2u / (1+u))``.

    Args:
        logratios: ``[B]`` Δ of whole completions.

    Returns:
        ``[B]`` scores, at most ``log 2``.
    """
    return math.log(2) + F.logsigmoid(logratios)


def alpha_divergence(logratios: Tensor, *, alpha: float) -> Tensor:
    """α-divergence, between the forward KL (α = 0) and the reverse KL (α = 1).

    f-DPO (arXiv 2309.16240), Table 1, with 1 - α for the paper's α: ``(e^((α-1)Δ) - 1) / (α-1)``,
    and its limit ``Δ`` at α = 1.

    Args:
        logratios: ``[B]`` Δ of whole completions; the exponent is cut where the dtype would overflow.
        alpha: which one.

    Returns:
        ``[B]`` scores.
    """
    if alpha == 1:
        return logratios
    # Two infinite scores would make a difference that is not a number, and with it the whole step.
    # A tenth of the range is left for what is done with the scores: 79 in float32, 638 in float64.
    limit = 0.9 * math.log(torch.finfo(logratios.dtype).max)
    return torch.expm1(((alpha - 1) * logratios).clamp(max=limit)) / (alpha - 1)
