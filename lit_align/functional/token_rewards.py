"""The reward of each token: what the KL costs everywhere, and the score at the end."""

import torch
from torch import Tensor


def last_tokens(mask: Tensor, sequence: Tensor, count: int) -> Tensor:
    """Where each sequence has its last token that counts.

    Args:
        mask: ``[N]`` non-zero where the policy chose the token.
        sequence: ``[N]`` index of the sequence each token belongs to.
        count: ``C``, the number of sequences.

    Returns:
        ``[N]`` bool, true once per sequence, and never in one without a token that counts.

    >>> last_tokens(torch.tensor([1, 1, 0, 1, 0]), torch.tensor([0, 0, 0, 1, 2]), 3).tolist()
    [False, True, False, True, False]
    """
    position = torch.arange(len(sequence), device=sequence.device)
    counted = torch.where(mask != 0, position, -1)
    none = torch.full((count,), -1, dtype=position.dtype, device=sequence.device)
    last = none.scatter_reduce(0, sequence, counted, "amax")
    return (mask != 0) & (last[sequence] == position)


def token_rewards(
    scores: Tensor, kl: Tensor, mask: Tensor, sequence: Tensor, *, kl_coefficient: float
) -> Tensor:
    """Penalty for each token's divergence, and the completion's score at its last token.

    Ziegler et al. (arXiv 1909.08593) Eq. 2, as PPO uses it: ``r_t = -β KL_t + [t last] score``.

    Args:
        scores: ``[C]`` score of each completion. A score of NaN makes the rewards of that completion's last
            token NaN: leave unscored completions out through the mask.
        kl: ``[N]`` divergence of each token, of an estimator of :mod:`lit_align.functional.kl`.
        mask: ``[N]`` non-zero where the policy chose the token; other tokens get 0.
        sequence: ``[N]`` index of the completion each token belongs to.
        kl_coefficient: β.

    Returns:
        ``[N]`` without gradient.
    """
    penalty = torch.where(mask != 0, -kl_coefficient * kl.detach(), 0)
    ends = last_tokens(mask, sequence, len(scores))
    return torch.where(ends, penalty + scores.detach().to(penalty.dtype)[sequence], penalty)


def penalise_missing_eos(scores: Tensor, finished: Tensor, *, penalty: float) -> Tensor:
    """Lower the scores of completions that did not come to an end.

    Args:
        scores: ``[C]``.
        finished: ``[C]`` bool, whether the completion ends in a stop token.
        penalty: what is taken off.

    Returns:
        ``[C]``.
    """
    return torch.where(finished, scores, scores - penalty)


def clip_scores(scores: Tensor, *, limit: float) -> Tensor:
    """Hold scores between ``-limit`` and ``limit``.

    Args:
        scores: ``[C]``; NaN stays NaN.
        limit: positive.

    Returns:
        ``[C]``.

    Raises:
        ValueError: where the limit is not positive.
    """
    if limit <= 0:
        raise ValueError(f"clip_scores: limit must be positive, got {limit}")
    return scores.clamp(-limit, limit)
