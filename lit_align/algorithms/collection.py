"""From prompts to experience: completions, their rewards, and what policy and reference say of them."""

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lit_align.algorithms.rollout_metrics import completion_metrics, reward_metrics
from lit_align.batches import Forest
from lit_align.functional.importance import IMPORTANCE, masked_weights, truncated_weights
from lit_align.models.tensor_parallel import DIMENSION
from lit_align.outputs import Metric
from lit_align.rollouts.correction import SamplerCorrection
from lit_align.rollouts.generate import generation_mode
from lit_align.rollouts.reward_set import RewardResult
from lit_align.runtime.agreement import together
from lit_align.runtime.data_place import data_place
from lit_align.runtime.seeds import derive

if TYPE_CHECKING:
    from lit_align.algorithms.on_policy import OnPolicy
    from lit_align.algorithms.sampling_module import SamplingModule


def generate(
    module: "SamplingModule",
    prompts: Forest,
    purpose: str,
    completions: int | None = None,
    before: Sequence[int] = (),
) -> Forest:
    """Complete each prompt of a batch.

    Args:
        module: whose policy and generator.
        prompts: a batch; completions that it has are ignored.
        purpose: names the randomness: the same purpose, rows and weights give the same completions, whatever
            the batch and the number of processes. Only a row that comes twice is told from its copy within
            a process, and not where two processes have one each.
        completions: per prompt; those of a rollout by default.
        before: rows that were completed for the same purpose already.

    Returns:
        The prompts with their completions, and the columns of
        :class:`lit_align.rollouts.generator.Generator`.
    """
    count = completions or module.completions
    ids, offsets = prompts.prompt_ids.tolist(), prompts.prompt_offsets
    seen: Counter[int] = Counter(before)
    seeds = []
    for row in prompts.rows:
        # A mixture may hold a row twice; its copies are no copies of each other's completions.
        seeds += [derive(module.seed, purpose, row, seen[row], g) for g in range(count)]
        seen[row] += 1
    with together(f"it sampled completions ({purpose})"):
        with generation_mode(module.policy):
            forest = module.generator.generate(
                module.policy,
                module.tokenizer,
                [ids[a:b] for a, b in pairwise(offsets)],
                completions=count,
                sampling=module.sampling,
                seeds=seeds,
                value_head=getattr(module.policy, "value_head", None),
            )
        forest = replace(
            forest, rows=prompts.rows, records=prompts.records, prompt_columns=prompts.prompt_columns
        )
        _check_probabilities(forest, purpose)
    return forest


def _check_probabilities(forest: Forest, purpose: str) -> None:
    broken = ~forest.token_columns["old_logps"].isfinite()
    if bool(broken.any()):
        rows = sorted({forest.rows[forest.parents[c]] for c in forest.sequence[broken].tolist()})
        raise FloatingPointError(
            f"{purpose}: the policy's probabilities are not finite while it answers rows {rows[:20]}. No "
            "checkpoint was written of it; go on from the last one with a lower lr, gradient_clip_val, or "
            "another precision"
        )


def reward(module: "SamplingModule", forest: Forest) -> RewardResult:
    """What the rewards say of completions; where they stop one process, they stop all."""
    with together("it rewarded completions"):
        result: RewardResult = module.rewards(forest, module.tokenizer, module.rollouts)
    return _of_first_copy(module, result)


def _of_first_copy(module: "SamplingModule", result: RewardResult) -> RewardResult:
    """What the first of the processes that read the same rows was told: a judge may change its mind."""
    mesh = module.device_mesh
    if mesh is None or data_place(module.trainer).copies == 1:
        return result
    file = io.BytesIO()
    torch.save(result, file)
    told: list[bytes | None] = [file.getvalue()]
    torch.distributed.broadcast_object_list(told, group=mesh[DIMENSION].get_group(), group_src=0)
    # Bytes of this run's own process; each has a device of its own.
    found: RewardResult = torch.load(
        io.BytesIO(told[0] or b""), map_location=module.device, weights_only=False
    )
    return found


def judge(module: "OnPolicy", forest: Forest, rewarded: RewardResult) -> tuple[Forest, dict[str, Metric]]:
    """Turn rewarded completions into experience: scores of policy and reference, then advantages.

    In evaluation mode throughout: experience has no dropout in it, a critic's and an adapter's neither.

    Args:
        module: the algorithm.
        forest: completions, with ``old_logps`` and ``finished``.
        rewarded: their rewards.
    """
    metrics = completion_metrics(forest) | reward_metrics(forest, rewarded, module.sum_over_ranks)
    unscored = rewarded.table.isnan().all(-1)
    # Left out of every sum; a reward of 0 would be a judgement.
    forest = replace(forest, weights=torch.where(unscored[forest.sequence], 0, forest.weights))
    with generation_mode(module):
        if module.correction is not None:
            forest = _corrected(module, forest, module.correction)
        if module.uses_reference:
            forest = forest.with_token_column("reference_logps", reference_logps(module, forest))
        experience, more = module.experience(forest, rewarded)
    return replace(experience, records=()), metrics | more


@torch.no_grad()
def evaluate(module: "SamplingModule", batch: Forest) -> tuple[Forest, RewardResult, dict[str, Metric]]:
    """One completion of each held-out prompt, its rewards, and what to report of them."""
    with module.rollout_mode():
        forest = generate(module, batch, "evaluation", completions=1)
        rewarded = reward(module, forest)
        metrics = completion_metrics(forest) | reward_metrics(forest, rewarded, module.sum_over_ranks)
        if module.uses_reference:
            policy = module.policy(forest, temperature=module.temperature).logps
            kl = forest.sum_per_completion(policy - reference_logps(module, forest))
            metrics["objective/kl"] = Metric.mean(kl)
    return forest, rewarded, metrics


def reference_logps(module: "SamplingModule", forest: Forest) -> Tensor:
    """``[N]`` log-probs of the reference at the temperature of the rollout."""
    logps: Tensor = module.reference.score(forest, module.temperature)
    return logps


def _corrected(module: "OnPolicy", forest: Forest, correction: SamplerCorrection) -> Forest:
    logps = module.policy(forest, temperature=module.temperature).logps
    sampler = forest.token_columns["old_logps"]
    level = IMPORTANCE["sequence_sum" if correction.level == "sequence" else "token"]
    ratios = level(logps, sampler, forest.weights, forest.sequence, forest.num_completions)
    weigh = truncated_weights if correction.kind == "truncate" else masked_weights
    forest = forest.with_token_column("sampler_logps", sampler)
    forest = forest.with_token_column("sampler_weights", weigh(ratios, cap=correction.cap))
    return forest.with_token_column("old_logps", logps)
