"""WPO: pairs that the policy itself might have written count more."""

from torch import Tensor

from lit_align.functional.segments import segment_mean


def completion_weights(
    logps: Tensor, log_sum_p2: Tensor, weights: Tensor, sequence: Tensor, count: int
) -> Tensor:
    """How likely a completion is under the policy, per token and against what the policy expects.

    WPO (arXiv 2406.11827), sampled alignment:
    ``exp(mean_t(log π(y_t) - log Σ_v π(v | x, y_<t)²))``.

    Args:
        logps: ``[N]`` log-probs of completion tokens, one completion after another.
        log_sum_p2: ``[N]`` log of the sum of the squared probabilities of the whole vocabulary.
        weights: ``[N]`` weight of each token in the mean.
        sequence: ``[N]`` index of the completion each token belongs to.
        count: ``C``, the number of completions.

    Returns:
        ``[C]`` without gradient: a weight, not a goal. 1 for a completion without tokens.
    """
    return segment_mean(logps.detach() - log_sum_p2.detach(), weights, sequence, count).exp()


def pair_weights(chosen_weights: Tensor, rejected_weights: Tensor) -> Tensor:
    """Weight of a pair in the loss.

    WPO (arXiv 2406.11827): ``w(x, y_w) w(x, y_l)``.

    Args:
        chosen_weights: ``[B]`` weights of the preferred completions.
        rejected_weights: ``[B]`` weights of the others.

    Returns:
        ``[B]`` to multiply the loss of each pair with.
    """
    return chosen_weights * rejected_weights
