"""Reward models: how well scalar rewards explain which of two answers was preferred."""

import torch.nn.functional as F
from torch import Tensor


def bradley_terry(
    chosen_rewards: Tensor, rejected_rewards: Tensor, *, margin: Tensor | None = None
) -> Tensor:
    """Negative log-likelihood of the preferences under the Bradley-Terry model.

    InstructGPT (arXiv 2203.02155) Eq. 1, with the margin of Llama 2 (arXiv 2307.09288) Eq. 2:
    ``-log σ(r_w - r_l - m)``.

    Args:
        chosen_rewards: ``[B]`` rewards of the preferred answers.
        rejected_rewards: ``[B]`` rewards of the others.
        margin: ``[B]`` by how much the preferred answer is to win; 0 where it is ``None``.

    Returns:
        ``[B]``.
    """
    lead = chosen_rewards - rejected_rewards
    return -F.logsigmoid(lead if margin is None else lead - margin)


def centering(chosen_rewards: Tensor, rejected_rewards: Tensor) -> Tensor:
    """Penalty that keeps rewards around zero, which a preference alone leaves free.

    Eisenstein et al. (arXiv 2312.09244) Eq. 2: ``(r_w + r_l)²``.

    Args:
        chosen_rewards: ``[B]`` rewards of the preferred answers.
        rejected_rewards: ``[B]`` rewards of the others.

    Returns:
        ``[B]``.
    """
    return (chosen_rewards + rejected_rewards) ** 2
