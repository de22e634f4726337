"""Direct preference optimisation, and its nearest relatives: losses of the lead ``d = s_w - s_l``.

A score ``s`` is the log-ratio ``Δ = log π(y|x) - log π_ref(y|x)`` of a whole completion, or an
f-divergence's function of it (:mod:`lit_align.losses.f_divergence`).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_align.losses.label_noise import check_label_smoothing


def sigmoid(chosen_scores: Tensor, rejected_scores: Tensor, *, beta: float) -> Tensor:
    """Direct Preference Optimization.

    DPO (arXiv 2305.18290) Eq. 7: ``-log σ(β(s_w - s_l))``.

    Args:
        chosen_scores: ``[B]`` scores of the preferred completions.
        rejected_scores: ``[B]`` scores of the others.
        beta: strength of the pull to the reference.

    Returns:
        ``[B]``; ``log 2`` where policy and reference are the same.

    >>> sigmoid(torch.zeros(2), torch.zeros(2), beta=0.1)
    tensor([0.6931, 0.6931])
    """
    return -F.logsigmoid(beta * (chosen_scores - rejected_scores))


def cdpo(chosen_scores: Tensor, rejected_scores: Tensor, *, beta: float, label_smoothing: float) -> Tensor:
    """Conservative DPO: cross-entropy with labels that are right with probability ``1 - ε``.

    Mitchell, "A note on DPO with noisy preferences" (2023): ``-(1-ε) log σ(βd) - ε log σ(-βd)``.

    Args:
        chosen_scores: ``[B]`` scores of the preferred completions.
        rejected_scores: ``[B]`` scores of the others.
        beta: strength of the pull to the reference.
        label_smoothing: ε, the probability that a pair is labelled the wrong way round.

    Returns:
        ``[B]``.

    Raises:
        ValueError: where ε is not in ``[0, 0.5)``.
    """
    check_label_smoothing(label_smoothing, loss="cdpo")
    lead = beta * (chosen_scores - rejected_scores)
    return -(1 - label_smoothing) * F.logsigmoid(lead) - label_smoothing * F.logsigmoid(-lead)


def robust(chosen_scores: Tensor, rejected_scores: Tensor, *, beta: float, label_smoothing: float) -> Tensor:
    """Robust DPO: an estimate of the DPO loss that label noise does not bias.

    rDPO (arXiv 2403.00409), the de-biased loss: ``(-(1-ε) log σ(βd) + ε log σ(-βd)) / (1 - 2ε)``.

    Args:
        chosen_scores: ``[B]`` scores of the preferred completions.
        rejected_scores: ``[B]`` scores of the others.
        beta: strength of the pull to the reference.
        label_smoothing: ε, the probability that a pair is labelled the wrong way round.

    Returns:
        ``[B]``; may be negative.

    Raises:
        ValueError: where ε is not in ``[0, 0.5)``.
    """
    check_label_smoothing(label_smoothing, loss="robust")
    lead = beta * (chosen_scores - rejected_scores)
    right, wrong = -F.logsigmoid(lead), -F.logsigmoid(-lead)
    return ((1 - label_smoothing) * right - label_smoothing * wrong) / (1 - 2 * label_smoothing)


def hinge(chosen_scores: Tensor, rejected_scores: Tensor, *, beta: float) -> Tensor:
    """Hinge on the lead: nothing to gain once the preferred completion is ahead by ``1/β``.

    RSO (arXiv 2309.06657), hinge-norm, after SLiC (arXiv 2305.10425): ``max(0, 1 - β(s_w - s_l))``.

    Args:
        chosen_scores: ``[B]`` scores of the preferred completions.
        rejected_scores: ``[B]`` scores of the others.
        beta: reciprocal of the lead asked for.

    Returns:
        ``[B]``.
    """
    return torch.relu(1 - beta * (chosen_scores - rejected_scores))


def sigmoid_norm(
    chosen_scores: Tensor,
    rejected_scores: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    *,
    beta: float,
) -> Tensor:
    """Length-normalised DPO: scores per token, so that a longer completion has no longer lever.

    Tülu 3 (arXiv 2411.15124), length-normalised DPO: ``-log σ(β(s_w/|y_w| - s_l/|y_l|))``.

    Args:
        chosen_scores: ``[B]`` scores of the preferred completions.
        rejected_scores: ``[B]`` scores of the others.
        chosen_lengths: ``[B]`` completion tokens; 0 counts as 1, for a completion cut to nothing.
        rejected_lengths: ``[B]`` the same of the others.
        beta: strength of the pull to the reference, per token.

    Returns:
        ``[B]``.
    """
    chosen = chosen_scores / chosen_lengths.clamp(min=1)
    rejected = rejected_scores / rejected_lengths.clamp(min=1)
    return -F.logsigmoid(beta * (chosen - rejected))
