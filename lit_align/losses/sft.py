"""Supervised fine-tuning: losses of single tokens."""

from torch import Tensor


def nll(logps: Tensor) -> Tensor:
    """Negative log-likelihood, what supervised fine-tuning minimises.

    InstructGPT (arXiv 2203.02155), step 1: ``-log π(y_t | x, y_<t)``.

    Args:
        logps: ``[N]`` log-probs of the target tokens.

    Returns:
        ``[N]`` one value per token. Their mean over all tokens that one update sees is the loss.
    """
    return -logps


def dft(logps: Tensor) -> Tensor:
    """Dynamic Fine-Tuning: the likelihood of each token weighted by its own probability.

    DFT (arXiv 2508.05629), the token-level objective: ``-sg(π(y_t | x, y_<t)) log π(y_t | x, y_<t)``.

    The weight ``sg`` carries no gradient: it undoes the ``1/π`` that makes the gradient of the plain
    likelihood explode on improbable tokens.

    Args:
        logps: ``[N]`` log-probs of the target tokens.

    Returns:
        ``[N]`` one value per token.
    """
    return -logps.detach().exp() * logps
