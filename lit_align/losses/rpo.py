"""The supervised term that is added to a preference loss, to keep the preferred completion likely."""

from torch import Tensor


def chosen_nll_per_token(chosen_nll: Tensor, chosen_lengths: Tensor) -> Tensor:
    """Negative log-likelihood of the preferred completion, per token.

    RPO (arXiv 2404.19733) Eq. 1, second term, and the generation loss of MPO (arXiv 2411.10442):
    ``-log π(y_w | x) / |y_w|``.

    Args:
        chosen_nll: ``[B]`` negative log-likelihoods of the preferred completions, summed over tokens.
        chosen_lengths: ``[B]`` completion tokens; 0 counts as 1, for a completion cut to nothing.

    Returns:
        ``[B]``; the value of a pair does not depend on the other pairs.
    """
    return chosen_nll / chosen_lengths.clamp(min=1)


def chosen_nll_token_mean(chosen_nll: Tensor, chosen_lengths: Tensor) -> Tensor:
    """Negative log-likelihood of the preferred completions, scaled so that its mean is the token mean.

    The convention of TRL's ``sft`` term: ``-log π(y_w | x) · B / Σ|y_w|`` over the batch at hand.

    A long completion weighs more here, and the number of tokens is the micro-batch's: the gradient
    depends on how the batch is cut. For agreement with numbers from elsewhere.

    Args:
        chosen_nll: ``[B]`` negative log-likelihoods of the preferred completions, summed over tokens.
        chosen_lengths: ``[B]`` completion tokens.

    Returns:
        ``[B]``.
    """
    return chosen_nll * len(chosen_nll) / chosen_lengths.sum().clamp(min=1)
