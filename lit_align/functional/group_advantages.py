"""Advantages of whole completions, judged against the other completions of their prompt.

A reward of NaN is one that could not be given. Such a completion is in no mean and no deviation, and its
advantage is 0; whether it is in the loss at all is for the mask to say.

``sum_over_ranks`` adds up a small tensor of sums over all processes, so that "batch" means the batch of
all of them; on one process it is the identity. Groups are never split, and need it not.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from lit_align.functional.segments import segment_sum
from lit_align.functional.whitening import mean_and_variance, moments, standardise

#: Adds a tensor of sums over all processes.
Reduce = Callable[[Tensor], Tensor]


def weighted_rewards(reward_table: Tensor, reward_weights: Tensor) -> Tensor:
    """One reward per completion out of several reward functions.

    Args:
        reward_table: ``[C, R]``; NaN where a function did not apply, which then adds nothing.
        reward_weights: ``[R]``.

    Returns:
        ``[C]`` weighted sums; NaN where no function applied.

    >>> table = torch.tensor([[1.0, 2.0], [1.0, float("nan")], [float("nan")] * 2])
    >>> weighted_rewards(table, torch.tensor([1.0, 0.5]))
    tensor([2., 1., nan])
    """
    total = (reward_table * reward_weights.to(reward_table)).nansum(-1)
    return total.masked_fill(reward_table.isnan().all(-1), torch.nan)


def group_statistics(rewards: Tensor, group: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Mean and unbiased standard deviation of each group, of its scored completions.

    Args:
        rewards: ``[C]``; NaN where unscored.
        group: ``[C]`` which group (prompt) each completion belongs to.
        groups: ``P``.

    Returns:
        ``[P]`` each. Without a scored completion the mean is 0, with fewer than two the deviation is.
    """
    scored = ~rewards.isnan()
    filled = rewards.masked_fill(~scored, 0)
    count = segment_sum(scored.to(rewards.dtype), group, groups)
    mean = segment_sum(filled, group, groups) / count.clamp(min=1)
    deviation = (filled - mean[group]).masked_fill(~scored, 0)
    variance = segment_sum(deviation**2, group, groups) / (count - 1).clamp(min=1)
    return mean, variance.sqrt()


def group_mean(rewards: Tensor, group: Tensor, groups: int) -> Tensor:
    """Reward less the mean of the group, in the units of the reward.

    Dr. GRPO (arXiv 2503.20783), advantage without the deviation: ``A_i = r_i - mean(r)``.

    Args:
        rewards: ``[C]``; NaN where unscored.
        group: ``[C]`` which group each completion belongs to.
        groups: ``P``.

    Returns:
        ``[C]``; 0 where unscored.
    """
    mean, _ = group_statistics(rewards, group, groups)
    return (rewards - mean[group]).nan_to_num(nan=0.0)


def group_normalised(rewards: Tensor, group: Tensor, groups: int, *, epsilon: float = 1e-4) -> Tensor:
    """Reward less the mean of the group, in its standard deviations.

    GRPO (arXiv 2402.03300) 4.1.2: ``A_i = (r_i - mean(r)) / (std(r) + ε)``, with the unbiased deviation.

    Args:
        rewards: ``[C]``; NaN where unscored.
        group: ``[C]`` which group each completion belongs to.
        groups: ``P``.
        epsilon: makes a group without spread 0.

    Returns:
        ``[C]``; 0 where unscored.
    """
    _, deviation = group_statistics(rewards, group, groups)
    return group_mean(rewards, group, groups) / (deviation[group] + epsilon)


def batch_normalised(
    rewards: Tensor, group: Tensor, groups: int, sum_over_ranks: Reduce, *, epsilon: float = 1e-4
) -> Tensor:
    """Reward less the mean of its group, in standard deviations of the whole batch.

    Lite PPO (arXiv 2508.08221): ``A_i = (r_i - mean_group(r)) / (std_batch(r) + ε)``: groups that are all
    easy or all hard are not blown up.

    Args:
        rewards: ``[C]``; NaN where unscored.
        group: ``[C]`` which group each completion belongs to.
        groups: ``P``.
        sum_over_ranks: adds sums over processes.
        epsilon: makes a batch without spread 0.

    Returns:
        ``[C]``; 0 where unscored.
    """
    _, variance = mean_and_variance(sum_over_ranks(moments(rewards, ~rewards.isnan())))
    return group_mean(rewards, group, groups) / (variance.sqrt() + epsilon).to(rewards.dtype)


def gdpo(
    reward_table: Tensor,
    reward_weights: Tensor,
    group: Tensor,
    groups: int,
    sum_over_ranks: Reduce,
    *,
    epsilon: float = 1e-4,
) -> Tensor:
    """Each reward normalised on its own, then summed, then normalised over the batch.

    GDPO (arXiv 2601.05242): ``A_i = Σ_k w_k (r_ik - mean_group(r_k)) / (std_group(r_k) + ε)``, then
    ``(A - mean_batch(A)) / (std_batch(A) + ε)``: rewards of different scale stay told apart.

    Args:
        reward_table: ``[C, R]``; NaN where a function did not apply, which then adds nothing.
        reward_weights: ``[R]``.
        group: ``[C]`` which group each completion belongs to.
        groups: ``P``.
        sum_over_ranks: adds sums over processes.
        epsilon: makes what has no spread 0.

    Returns:
        ``[C]``; 0 where no function applied.
    """
    each = [group_normalised(column, group, groups, epsilon=epsilon) for column in reward_table.unbind(-1)]
    total = (torch.stack(each, -1) * reward_weights.to(reward_table)).sum(-1)
    scored = ~reward_table.isnan().all(-1)
    return standardise(total, scored, sum_over_ranks(moments(total, scored)), epsilon=epsilon)


def leave_one_out(rewards: Tensor, group: Tensor, groups: int) -> Tensor:
    """Reward less the mean of the others of the group: a baseline that the completion has no part in.

    RLOO (arXiv 2402.14740) Eq. 8: ``A_i = r_i - 1/(G-1) Σ_{j≠i} r_j``.

    Args:
        rewards: ``[C]``; NaN where unscored.
        group: ``[C]`` which group each completion belongs to.
        groups: ``P``.

    Returns:
        ``[C]``; 0 where unscored, and where no other of the group is scored.
    """
    count = segment_sum((~rewards.isnan()).to(rewards.dtype), group, groups)[group]
    # r - (Σ - r)/(n - 1) = (r - mean) n/(n - 1), without a difference of large sums.
    return group_mean(rewards, group, groups) * count / (count - 1).clamp(min=1)


def leave_one_out_normalised(
    rewards: Tensor, group: Tensor, groups: int, sum_over_ranks: Reduce, *, epsilon: float = 1e-4
) -> Tensor:
    """Leave-one-out advantages, brought to mean 0 and deviation 1 over the batch.

    ``(A - mean_batch(A)) / (std_batch(A) + ε)`` of :func:`leave_one_out`.

    Args:
        rewards: ``[C]``; NaN where unscored.
        group: ``[C]`` which group each completion belongs to.
        groups: ``P``.
        sum_over_ranks: adds sums over processes.
        epsilon: makes a batch without spread 0.

    Returns:
        ``[C]``; 0 where unscored.
    """
    advantages, scored = leave_one_out(rewards, group, groups), ~rewards.isnan()
    return standardise(advantages, scored, sum_over_ranks(moments(advantages, scored)), epsilon=epsilon)


def reinforce_pp_baseline(
    rewards: Tensor, group: Tensor, groups: int, sum_over_ranks: Reduce, *, epsilon: float = 1e-8
) -> Tensor:
    """REINFORCE++ for groups: the group gives the baseline, the whole batch the scale.

    REINFORCE++ (arXiv 2501.03262), with baseline: ``A' = r - mean_group(r)``, then
    ``(A' - mean_batch(A')) / (std_batch(A') + ε)``.

    Args:
        rewards: ``[C]``; NaN where unscored.
        group: ``[C]`` which group each completion belongs to.
        groups: ``P``.
        sum_over_ranks: adds sums over processes.
        epsilon: makes a batch without spread 0.

    Returns:
        ``[C]``; 0 where unscored.
    """
    advantages, scored = group_mean(rewards, group, groups), ~rewards.isnan()
    return standardise(advantages, scored, sum_over_ranks(moments(advantages, scored)), epsilon=epsilon)
