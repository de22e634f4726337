"""A minibatch of experience, its policy loss, and what is reported of it. Names are TRL's."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lit_align.algorithms.rollout_metrics import groups_of
from lit_align.batches import Forest
from lit_align.functional.advantages import AdvantageEstimator, Experience
from lit_align.functional.group_advantages import Reduce, weighted_rewards
from lit_align.functional.segments import segment_mean, segment_sum
from lit_align.losses.cispo import RATIO_CAP, cispo
from lit_align.losses.policy import Decisions, PolicyObjective
from lit_align.losses.ppo import clipped_high, clipped_low
from lit_align.losses.vespo import completion_weights, vespo
from lit_align.outputs import LossOutput, Metric, Scores
from lit_align.rollouts.reward_set import RewardResult


def decisions(scores: Scores, batch: Forest, *, fresh: bool) -> Decisions:
    """The tokens of a minibatch as a policy loss sees them.

    Args:
        scores: of the present policy.
        batch: with ``old_logps`` and ``advantages``.
        fresh: whether the policy is still the one that sampled. Its own log-probs are then the old ones, so
            that every ratio is exactly 1, whatever the sampler's arithmetic. Completions of an earlier
            policy (the column ``replayed``) keep theirs.
    """
    old = batch.token_columns["old_logps"].to(scores.logps.dtype)
    if fresh:
        now = scores.logps.detach()
        replayed = batch.completion_columns.get("replayed")
        old = now if replayed is None else torch.where(replayed[batch.sequence], old, now)
    return Decisions(
        logps=scores.logps,
        old_logps=old,
        advantages=batch.token_columns["advantages"].to(scores.logps.dtype),
        mask=batch.weights,
        sequence=batch.sequence,
        completions=batch.num_completions,
    )


def policy_loss(
    objective: PolicyObjective,
    tokens: Decisions,
    batch: Forest,
    *,
    kept: Tensor | None = None,
    extra: Tensor | None = None,
) -> LossOutput:
    """The sum of a policy loss over a minibatch, and what it is to be divided by.

    Args:
        objective: the loss.
        tokens: of :func:`decisions`.
        batch: the minibatch; its column ``sampler_weights``, where there is one, weighs the policy term.
        kept: ``[N]`` bool, false where the policy term is left out and the token counts all the same.
        extra: ``[N]`` added to the loss of each token (a KL penalty, minus an entropy bonus).
    """
    each = objective(tokens)
    weights, total = objective.token_weights(tokens)
    if "sampler_weights" in batch.token_columns:
        each = each * batch.token_columns["sampler_weights"]
    if kept is not None:
        each = torch.where(kept, each, 0)
    metrics = {"loss/policy_avg": Metric((each * weights).sum().detach(), total)}
    if extra is not None:
        each = each + extra
    return LossOutput((each * weights).sum(), total, metrics)


def surrogate(
    objective: PolicyObjective, scores: Scores, batch: Forest, *, fresh: bool, extra: Tensor | None = None
) -> LossOutput:
    """A policy loss with all that is reported of its step.

    Args:
        objective: the loss.
        scores: of the present policy.
        batch: the minibatch.
        fresh: see :func:`decisions`.
        extra: see :func:`policy_loss`.
    """
    tokens = decisions(scores, batch, fresh=fresh)
    output = policy_loss(objective, tokens, batch, extra=extra)
    metrics = step_metrics(tokens, scores, batch, fresh=fresh) | clip_metrics(objective, tokens)
    return output._replace(metrics=output.metrics | metrics)


def group_experience(
    rollout: Forest,
    rewarded: RewardResult,
    estimator: AdvantageEstimator,
    options: dict[str, Any],
    sum_over_ranks: Reduce,
    *,
    rewards: Tensor | None = None,
    token_rewards: Tensor | None = None,
) -> Forest:
    """A rollout with the column ``advantages`` of an estimator that needs no critic.

    Args:
        rollout: the completions.
        rewarded: their rewards.
        estimator: one of :data:`lit_align.functional.advantages.ADVANTAGE_ESTIMATORS`, or the user's own.
        options: its hyper-parameters.
        sum_over_ranks: adds sums over processes.
        rewards: ``[C]``; by default the weighted sum of the reward table.
        token_rewards: ``[N]``, for estimators that see tokens.
    """
    experience = Experience(
        rewards=weighted_rewards(rewarded.table, rewarded.weights) if rewards is None else rewards,
        reward_table=rewarded.table,
        reward_weights=rewarded.weights,
        group=groups_of(rollout),
        groups=rollout.num_prompts,
        token_rewards=token_rewards,
        mask=rollout.weights,
        sequence=rollout.sequence,
        completions=rollout.num_completions,
        sum_over_ranks=sum_over_ranks,
    )
    advantages = estimator(experience, **options)
    if not estimator.per_token:
        advantages = advantages[rollout.sequence]
    return rollout.with_token_column("advantages", advantages)


def step_metrics(tokens: Decisions, scores: Scores, batch: Forest, *, fresh: bool) -> dict[str, Metric]:
    """How far the policy has moved from the one that sampled.

    Args:
        tokens: of :func:`decisions`.
        scores: with the entropy on steps that log, or without.
        batch: the minibatch.
        fresh: whether the policy is still the one that sampled; the difference from the sampler is then
            pure arithmetic, and reported as such.
    """
    mask = tokens.mask
    moved = (tokens.logps - tokens.old_logps).detach() * (mask != 0)
    metrics = {
        "policy/approxkl_avg": Metric.mean(0.5 * moved**2, mask),
        "val/ratio": Metric.mean(moved.exp(), mask),
        # About the mean that ratios have under the policy that sampled.
        "val/ratio_var": Metric.mean((moved.exp() - 1) ** 2, mask),
    }
    if scores.entropy is not None:
        metrics["policy/entropy_avg"] = Metric.mean(scores.entropy, mask)
    if fresh:
        metrics |= _sampler_gap(tokens, batch)
    if "sampler_weights" in batch.token_columns:
        weights = batch.token_columns["sampler_weights"]
        name = "sampling/importance_sampling_ratio"
        metrics[f"{name}/mean"] = Metric.mean(weights, mask)
        # Of no weight where no token counts: such a report is left out.
        some = (mask != 0).any().float()
        lowest, highest = (torch.where(mask != 0, weights, end) for end in (torch.inf, -torch.inf))
        metrics[f"{name}/min"] = Metric(lowest.min(), some, "min")
        metrics[f"{name}/max"] = Metric(highest.max(), some, "max")
    return metrics


def _sampler_gap(tokens: Decisions, batch: Forest) -> dict[str, Metric]:
    # What an earlier policy sampled differs for a reason.
    replayed, mask = batch.completion_columns.get("replayed"), tokens.mask
    if replayed is not None:
        mask = torch.where(replayed[batch.sequence], 0, mask)
    sampler = batch.token_columns.get("sampler_logps", batch.token_columns["old_logps"])
    gap = (tokens.logps.detach() - sampler) * (mask != 0)
    name = "sampling/sampling_logp_difference"
    # Of no weight where no token counts: such a report is left out.
    some, largest = (mask != 0).any().float(), torch.cat((gap.abs(), gap.new_zeros(1))).max().float()
    return {
        "ratio/first_mean": Metric.mean(gap.exp(), mask),
        f"{name}/mean": Metric.mean(gap.abs(), mask),
        f"{name}/max": Metric(largest, some, "max"),
    }


def clip_metrics(objective: PolicyObjective, tokens: Decisions) -> dict[str, Metric]:
    """What the bounds of a loss do to a minibatch; nothing for losses without.

    TRL's ``clip_ratio/*``, shares of tokens whose gradient clipping takes away: at the level of importance of
    the loss; the extremes are those of completions. CISPO caps weights (``cispo_clip_ratio``), and VESPO
    weighs whole completions (``vespo/phi_seq_mean``).
    """
    own = _OWN_METRICS.get(objective.loss.function)
    if own is not None:
        return own(objective, tokens)
    bounds = {k: v for k, v in objective.hyperparameters.items() if k in ("clip_range", "clip_range_high")}
    if "clip_range" not in objective.loss.signature.hyperparameters:
        return {}
    ratios, mask = objective.at_own_level(tokens).ratios.detach(), tokens.mask
    low = clipped_low(ratios, tokens.advantages, **bounds).float()
    high = clipped_high(ratios, tokens.advantages, **bounds).float()
    return {
        "clip_ratio/low_mean": Metric.mean(low, mask),
        "clip_ratio/high_mean": Metric.mean(high, mask),
        "clip_ratio/region_mean": Metric.mean(torch.maximum(low, high), mask),
        "clip_ratio/low_min": Metric.low(segment_mean(low, mask, tokens.sequence, tokens.completions)),
        "clip_ratio/high_max": Metric.high(segment_mean(high, mask, tokens.sequence, tokens.completions)),
    }


def _cispo_metrics(objective: PolicyObjective, tokens: Decisions) -> dict[str, Metric]:
    cap = objective.hyperparameters.get("ratio_cap", RATIO_CAP)
    ratios = objective.at_own_level(tokens).ratios.detach()
    capped = (ratios > cap) & (tokens.advantages > 0)
    return {"cispo_clip_ratio": Metric.mean(capped.float(), tokens.mask)}


def _vespo_metrics(objective: PolicyObjective, tokens: Decisions) -> dict[str, Metric]:
    given = (tokens.logps, tokens.old_logps, tokens.advantages, tokens.mask, tokens.sequence)
    weights = completion_weights(*given, tokens.completions, **objective.hyperparameters)
    counted = (tokens.mask != 0).to(weights.dtype)
    each = segment_mean(weights, counted, tokens.sequence, tokens.completions)
    present = segment_sum(counted, tokens.sequence, tokens.completions) > 0
    return {"vespo/phi_seq_mean": Metric.mean(each, present.float())}


#: Losses that bound the policy's change in ways of their own.
_OWN_METRICS: dict[Callable[..., Tensor], Callable[[PolicyObjective, Decisions], dict[str, Metric]]] = {
    cispo: _cispo_metrics,
    vespo: _vespo_metrics,
}


def without_truncated(rollout: Forest) -> Forest:
    """The same rollout, without weight on completions that were cut off at their limit.

    DAPO (arXiv 2503.14476), overlong filtering: whether they would have been right is not known.
    """
    finished = rollout.completion_columns["finished"].bool()[rollout.sequence]
    return replace(rollout, weights=torch.where(finished, rollout.weights, 0))
