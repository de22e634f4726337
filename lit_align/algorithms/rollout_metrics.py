"""What is reported of a rollout: lengths of completions, and rewards. Names are TRL's."""

import torch
from torch import Tensor

from lit_align.batches import Forest
from lit_align.functional.group_advantages import Reduce, group_statistics, weighted_rewards
from lit_align.functional.whitening import mean_and_variance, moments
from lit_align.outputs import Metric
from lit_align.rollouts.reward_set import RewardResult


def groups_of(forest: Forest) -> Tensor:
    """``[C]`` the prompt of each completion."""
    return torch.tensor(forest.parents, dtype=torch.long, device=forest.device)


def judged(forest: Forest) -> Tensor:
    """``[C]`` 1 for completions of which a token counts, 0 for those that nobody could judge."""
    return (forest.sum_per_completion((forest.weights != 0).float()) > 0).float()


def completion_metrics(forest: Forest) -> dict[str, Metric]:
    """How long completions are, and how many were cut off at their limit.

    Args:
        forest: with the column ``finished`` ``[C]``.
    """
    lengths = torch.tensor(forest.completion_lengths, dtype=torch.float32, device=forest.device)
    finished = forest.completion_columns["finished"].bool()
    metrics = {
        "completions/mean_length": Metric.mean(lengths),
        "completions/min_length": Metric.low(lengths),
        "completions/max_length": Metric.high(lengths),
        "completions/clipped_ratio": Metric.mean((~finished).float()),
        "completions/mean_terminated_length": Metric.mean(lengths, finished.float()),
    }
    # Of no weight where none came to its end: such a report is left out.
    some = finished.any().float()
    ended = lengths[finished] if finished.any() else lengths.new_zeros(1)
    metrics["completions/min_terminated_length"] = Metric(ended.min(), some, "min")
    metrics["completions/max_terminated_length"] = Metric(ended.max(), some, "max")
    return metrics


def reward_metrics(forest: Forest, rewarded: RewardResult, sum_over_ranks: Reduce) -> dict[str, Metric]:
    """The weighted reward, its spread, and what the reward functions report.

    Args:
        forest: the completions.
        rewarded: their rewards.
        sum_over_ranks: adds sums over processes: the deviation is that of all completions together.
    """
    rewards = weighted_rewards(rewarded.table, rewarded.weights)
    columns = [rewards, *rewarded.table.unbind(-1)]
    sums = sum_over_ranks(torch.stack([moments(column, ~column.isnan()) for column in columns]))
    spread = [mean_and_variance(own)[1].sqrt()[None] for own in sums]
    metrics = {
        **rewarded.metrics,
        "reward": Metric(rewards.nan_to_num().sum(), (~rewards.isnan()).sum().float()),
        "reward_std": Metric.mean(spread[0]),
    }
    for name, deviation in zip(rewarded.names, spread[1:], strict=True):
        # A process alone would report the deviation of its own completions.
        metrics[f"rewards/{name}/std"] = Metric.mean(deviation)
    if forest.num_completions > forest.num_prompts:
        _, deviation = group_statistics(rewards, groups_of(forest), forest.num_prompts)
        metrics["frac_reward_zero_std"] = Metric.mean((deviation < 1e-6).float())
    return metrics


def objective_metrics(
    rollout: Forest, scores: Tensor, kl: Tensor, kl_coefficient: float
) -> dict[str, Metric]:
    """What is maximised: the scores, less what the divergence from the reference costs.

    Args:
        rollout: the completions, with ``old_logps`` and ``finished``.
        scores: ``[C]`` as they are rewarded.
        kl: ``[N]`` divergence of each token.
        kl_coefficient: β.
    """
    counted = rollout.weights != 0
    per_completion = rollout.sum_per_completion(kl * counted)
    cost, weight = -kl_coefficient * per_completion, judged(rollout)
    surprise = rollout.sum_per_completion(-rollout.token_columns["old_logps"] * counted)
    return {
        "objective/kl": Metric.mean(per_completion, weight),
        "objective/kl_coef": Metric.mean(torch.tensor([kl_coefficient], device=kl.device)),
        "objective/entropy": Metric.mean(surprise, weight),
        "objective/non_score_reward": Metric.mean(cost, weight),
        "objective/scores": Metric.mean(scores, weight),
        "objective/rlhf_reward": Metric.mean(scores + cost, weight),
        "val/num_eos_tokens": Metric.mean(rollout.completion_columns["finished"].float()),
    }
