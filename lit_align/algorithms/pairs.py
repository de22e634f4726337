"""What algorithms of preference pairs share: from scores to pairs, and the metrics of pairs."""

import torch

from lit_align.batches import Forest
from lit_align.losses.ld_dpo import desensitised_logps
from lit_align.losses.preference import Pair
from lit_align.outputs import Metric, Scores


def check_pairs(batch: Forest, algorithm: str) -> None:
    """Refuse a batch whose prompts do not have two completions each.

    Raises:
        ValueError: naming the algorithm.
    """
    if batch.parents != tuple(p for p in range(batch.num_prompts) for _ in range(2)):
        raise ValueError(f"{algorithm} takes pairs: each prompt with a chosen and a rejected completion")


def pair_of(scores: Scores, batch: Forest, ld_alpha: float | None = None) -> Pair:
    """Log-probs of whole completions, chosen against rejected.

    Args:
        scores: of the policy. Those of the reference are the batch's ``reference_logps``, or 0.
        batch: ``B`` pairs, chosen first.
        ld_alpha: weight of a completion's tail past the length of its rival (LD-DPO); ``None`` is 1.
    """
    policy = batch.sum_per_completion(scores.logps * batch.weights)
    lengths = batch.sum_per_completion((batch.weights != 0).float())
    reference = batch.token_columns.get("reference_logps", torch.zeros_like(scores.logps))
    sums = [policy, batch.sum_per_completion(reference * batch.weights)]
    if ld_alpha is not None:
        shared = torch.minimum(lengths[0::2], lengths[1::2]).repeat_interleave(2)
        sums = [
            desensitised_logps(logps, batch.weights, batch.sequence, shared, alpha=ld_alpha)
            for logps in (scores.logps, reference)
        ]
    return Pair(
        chosen_logps=sums[0][0::2],
        rejected_logps=sums[0][1::2],
        chosen_reference_logps=sums[1][0::2],
        rejected_reference_logps=sums[1][1::2],
        chosen_lengths=lengths[0::2],
        rejected_lengths=lengths[1::2],
        chosen_nll=-policy[0::2],
    )


def pair_metrics(pair: Pair, scores: Scores, batch: Forest, *, beta: float) -> dict[str, Metric]:
    """Implicit rewards and what goes with them, under TRL's names.

    Args:
        pair: from :func:`pair_of`.
        scores: of the policy, with the statistics of steps that log or without.
        batch: the pairs.
        beta: scale of the rewards.
    """
    chosen, rejected = beta * pair.chosen_logratios, beta * pair.rejected_logratios
    metrics = {
        "rewards/chosen": Metric.mean(chosen),
        "rewards/rejected": Metric.mean(rejected),
        "rewards/accuracies": Metric.mean((chosen > rejected).float()),
        "rewards/margins": Metric.mean(chosen - rejected),
        "logps/chosen": Metric.mean(pair.chosen_logps),
        "logps/rejected": Metric.mean(pair.rejected_logps),
    }
    scored = (batch.weights != 0).float()
    of_chosen = scored * (batch.sequence % 2 == 0)
    if scores.entropy is not None:
        metrics["entropy"] = Metric.mean(scores.entropy, scored)
    if scores.mean_logit is not None:
        metrics["logits/chosen"] = Metric.mean(scores.mean_logit, of_chosen)
        metrics["logits/rejected"] = Metric.mean(scores.mean_logit, scored - of_chosen)
    if scores.top1 is not None:
        metrics["mean_token_accuracy"] = Metric.mean(scores.top1, of_chosen)
    return metrics
