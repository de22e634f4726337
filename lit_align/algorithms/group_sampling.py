"""Groups whose rewards differ, and so teach something: sampled until there are enough, or kept for later."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lit_align.algorithms.collection import generate, judge, reference_logps, reward
from lit_align.algorithms.rollout_metrics import completion_metrics, groups_of, reward_metrics
from lit_align.batches import Forest
from lit_align.functional.group_advantages import group_statistics, weighted_rewards
from lit_align.outputs import Metric, merge_metrics
from lit_align.rollouts.buffer import concatenate, forest_of, plain_forest
from lit_align.rollouts.reward_set import RewardResult
from lit_align.runtime.seeds import derive

if TYPE_CHECKING:
    from lit_align.algorithms.on_policy import OnPolicy

#: A group whose rewards deviate by less than this teaches nothing.
SPREAD = 1e-6


class DynamicSampling:
    """Ask prompt after prompt of a batch until enough groups have spread.

    DAPO (arXiv 2503.14476) 3.2: groups that are all right or all wrong have advantages of 0, and make the
    batch smaller in effect. The batch of prompts is the pool to draw from: give the data module a larger
    ``batch_size`` than the number of groups.

    Args:
        groups: to fill, per process.
    """

    def __init__(self, groups: int) -> None:
        if groups < 1:
            raise ValueError(f"dynamic_sampling is {groups}; it is the number of groups to fill, at least 1")
        self.groups = groups

    def __call__(self, module: "OnPolicy", prompts: Forest) -> tuple[Forest, dict[str, Metric]]:
        """A rollout of ``groups`` prompts; where the pool runs dry, groups without spread fill it up."""
        parts: list[tuple[Forest, RewardResult]] = []
        asked = rounds = lacking = 0
        while True:
            span = range(asked, min(asked + self.groups, prompts.num_prompts))
            part = prompts.select(span)
            forest = generate(module, part, f"rollout {module.rollouts}", before=prompts.rows[:asked])
            parts.append((forest, reward(module, forest)))
            asked, rounds = span.stop, rounds + 1
            found = sum(int(has_spread(*part).sum()) for part in parts)
            lacking = max(0, self.groups - found)
            state = torch.tensor([float(lacking > 0), float(asked >= prompts.num_prompts)])
            # Agreed among processes: sharded weights are gathered by all of them or by none.
            anyone_lacks, anyone_is_out = module.sum_over_ranks(state.to(module.device)).tolist()
            if not anyone_lacks or anyone_is_out:
                break
        whole, rewarded = _joined(parts)
        keep = _with_spread_first(has_spread(whole, rewarded), self.groups)
        experience, metrics = judge(module, whole.select(keep), _of_prompts(rewarded, whole, keep))
        # Of everything that was sampled: groups were chosen by their rewards, and say little of the policy's.
        metrics |= completion_metrics(whole) | reward_metrics(whole, rewarded, module.sum_over_ranks)
        device = experience.device
        metrics["dynamic_sampling/rounds"] = Metric.mean(torch.tensor([float(rounds)], device=device))
        share = 1 - lacking / self.groups
        metrics["dynamic_sampling/filled"] = Metric.mean(torch.tensor([share], device=device))
        return experience, metrics


class ReplayBuffer:
    """Groups with spread, kept, and put in the place of groups without.

    The best groups by the mean size of their advantages stay; a replayed completion keeps the log-probs of
    the policy that sampled it, so its ratios say how old it is. A reference that moves is asked
    again (:func:`with_present_reference`).

    Args:
        size: how many groups to keep, per process.
    """

    def __init__(self, size: int) -> None:
        if size < 0:
            raise ValueError(f"replay is {size}; it is the number of groups to keep")
        self.size = size
        self.groups: list[Forest] = []

    def exchange(self, rollout: Forest, seed: int, index: int) -> Forest:
        """A rollout with kept groups for those without spread; its own with spread are kept from now on.

        Args:
            rollout: with the column ``advantages``.
            seed: of the run.
            index: of the rollout, for the draw.
        """
        size = advantage_size(rollout)
        new = torch.zeros(rollout.num_completions, dtype=torch.bool, device=rollout.device)
        rollout = replace(rollout, completion_columns={**rollout.completion_columns, "replayed": new})
        own = [rollout.select([p]) for p in range(rollout.num_prompts)]
        flat = [p for p in range(rollout.num_prompts) if size[p] <= SPREAD]
        mixed = list(own)
        for p, kept in zip(flat, self._draw(len(flat), seed, index), strict=False):
            old = torch.ones_like(kept.completion_columns["replayed"])
            columns = {**kept.completion_columns, "replayed": old}
            mixed[p] = replace(kept, completion_columns=columns).to(rollout.device)
        self.groups += [own[p].to("cpu") for p in range(rollout.num_prompts) if size[p] > SPREAD]
        # The newest first where they are equal: what is closer to the present policy.
        order = sorted(range(len(self.groups)), key=lambda i: (-float(advantage_size(self.groups[i])[0]), -i))
        self.groups = [self.groups[i] for i in sorted(order[: self.size])]
        return concatenate(mixed)

    def state(self) -> list[dict[str, Any]]:
        """The groups, for a checkpoint."""
        return [plain_forest(group) for group in self.groups]

    def load(self, states: Sequence[dict[str, Any]]) -> None:
        """Take up what :meth:`state` gave; no more than there is room for."""
        self.groups = [forest_of(state) for state in states][-self.size :]

    def _draw(self, count: int, seed: int, index: int) -> list[Forest]:
        if not self.groups or not count:
            return []
        weights = torch.stack([advantage_size(group)[0] for group in self.groups]).double()
        generator = torch.Generator().manual_seed(derive(seed, "replay", index))
        drawn = torch.multinomial(weights, min(count, len(self.groups)), generator=generator)
        return [self.groups[i] for i in drawn.tolist()]


def with_present_reference(module: "OnPolicy", rollout: Forest) -> Forest:
    """The same rollout, with what the reference of now says of replayed completions.

    It may have moved since they were kept (`EMA`, `SyncReference`); one that stays is not asked.

    Args:
        module: whose reference.
        rollout: with the columns ``replayed`` and ``reference_logps``.
    """
    if not module.reference.moves:
        return rollout
    replayed = rollout.completion_columns["replayed"]
    old = replayed.tolist()
    prompts = sorted({p for c, p in enumerate(rollout.parents) if old[c]})
    # Agreed among processes: weights that are spread are gathered by all of them or by none.
    if not int(module.sum_over_ranks(torch.tensor([float(len(prompts))], device=rollout.device))):
        return rollout
    logps = reference_logps(module, rollout.select(prompts or [0]))
    if not prompts:
        return rollout
    column = rollout.token_columns["reference_logps"].clone()
    column[replayed[rollout.sequence]] = logps.to(column.dtype)
    return rollout.with_token_column("reference_logps", column)


def has_spread(forest: Forest, rewarded: RewardResult) -> Tensor:
    """``[P]`` bool, whether the rewards of a prompt's completions differ."""
    rewards = weighted_rewards(rewarded.table, rewarded.weights)
    _, deviation = group_statistics(rewards, groups_of(forest), forest.num_prompts)
    return deviation > SPREAD


def advantage_size(rollout: Forest) -> Tensor:
    """``[P]`` mean size of the advantages of each prompt's tokens."""
    owner = groups_of(rollout)[rollout.sequence]
    zeros = torch.zeros(rollout.num_prompts, device=rollout.device)
    sizes = rollout.token_columns["advantages"].abs() * (rollout.weights != 0)
    total = zeros.index_add(0, owner, sizes.float())
    return total / zeros.index_add(0, owner, (rollout.weights != 0).float()).clamp_min(1)


def _with_spread_first(spread: Tensor, count: int) -> list[int]:
    good = [p for p, differs in enumerate(spread.tolist()) if differs]
    rest = [p for p, differs in enumerate(spread.tolist()) if not differs]
    return (good + rest)[:count]


def _joined(parts: Sequence[tuple[Forest, RewardResult]]) -> tuple[Forest, RewardResult]:
    forests, results = zip(*parts, strict=True)
    tokens = None
    if any(result.token_rewards is not None for result in results):
        tokens = torch.cat(
            [
                torch.zeros(len(forest.completion_ids), device=forest.device)
                if result.token_rewards is None
                else result.token_rewards
                for forest, result in parts
            ]
        )
    whole = replace(
        results[0],
        table=torch.cat([result.table for result in results]),
        scores=torch.cat([result.scores for result in results]),
        token_rewards=tokens,
        metrics=merge_metrics([result.metrics for result in results]),
    )
    return concatenate(forests), whole


def _of_prompts(rewarded: RewardResult, forest: Forest, prompts: Sequence[int]) -> RewardResult:
    """The rewards of some prompts, in their order."""
    children: dict[int, list[int]] = {p: [] for p in prompts}
    for c, p in enumerate(forest.parents):
        if p in children:
            children[p].append(c)
    chosen = [c for p in prompts for c in children[p]]
    tokens = rewarded.token_rewards
    if tokens is not None:
        spans = [tokens[forest.completion_offsets[c] : forest.completion_offsets[c + 1]] for c in chosen]
        tokens = torch.cat(spans)
    return replace(
        rewarded, table=rewarded.table[chosen], scores=rewarded.scores[chosen], token_rewards=tokens
    )
