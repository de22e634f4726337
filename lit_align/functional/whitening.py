"""Mean 0 and variance 1 over all that counts, on however many processes it lies.

In two halves, so that processes can meet in between: :func:`moments` gives sums, which processes add,
and what applies them takes the added sums. Values that do not count are in no sum, and are 0 afterwards:
whitening a masked zero would otherwise make a reward out of padding.
"""

import torch
from torch import Tensor


def moments(values: Tensor, mask: Tensor) -> Tensor:
    """Sums from which mean and variance follow; those of several processes are added.

    Args:
        values: ``[N]``.
        mask: ``[N]`` non-zero where a value counts.

    Returns:
        ``[3]`` how many, their sum, the sum of their squares; float64, without gradient.

    >>> moments(torch.tensor([1.0, 3.0, 99.0]), torch.tensor([1, 1, 0]))
    tensor([ 2.,  4., 10.], dtype=torch.float64)
    """
    counted = mask != 0
    # Float64, because the variance is a difference of two large sums. Apple's GPUs have none.
    exact = torch.float32 if values.device.type == "mps" else torch.float64
    kept = torch.where(counted, values.detach(), 0).to(exact)
    return torch.stack((counted.sum().to(exact), kept.sum(), (kept * kept).sum()))


def mean_and_variance(sums: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance.

    Args:
        sums: ``[3]`` from :func:`moments`.

    Returns:
        Two scalars. The mean of nothing is 0, and so is the variance of fewer than two values.
    """
    count, total, squares = sums.unbind()
    mean = total / count.clamp(min=1)
    # Below zero only by rounding.
    spread = (squares - total * mean).clamp(min=0)
    return mean, torch.where(count > 1, spread / (count - 1).clamp(min=1), 0)


def whiten(values: Tensor, mask: Tensor, sums: Tensor, *, epsilon: float = 1e-8) -> Tensor:
    """Shift and scale to mean 0 and variance 1.

    ``(x - mean) / sqrt(var + ε)``, the advantages of PPO as in Ziegler et al. (arXiv 1909.08593).

    Args:
        values: ``[N]``.
        mask: ``[N]`` non-zero where a value counts; 0 elsewhere in the result.
        sums: ``[3]`` of :func:`moments`, added over processes.
        epsilon: keeps equal values at 0.

    Returns:
        ``[N]``.
    """
    mean, variance = mean_and_variance(sums)
    scaled = (values - mean.to(values.dtype)) * torch.rsqrt(variance + epsilon).to(values.dtype)
    return torch.where(mask != 0, scaled, 0)


def whiten_keep_mean(values: Tensor, mask: Tensor, sums: Tensor, *, epsilon: float = 1e-8) -> Tensor:
    """Scale the deviations from the mean to variance 1, and leave the mean where it is.

    ``(x - mean) / sqrt(var + ε) + mean``, the rewards of PPO as in Ziegler et al. (arXiv 1909.08593).

    Args:
        values: ``[N]``.
        mask: ``[N]`` non-zero where a value counts; 0 elsewhere in the result.
        sums: ``[3]`` of :func:`moments`, added over processes.
        epsilon: keeps equal values at their mean.

    Returns:
        ``[N]``.
    """
    mean, _ = mean_and_variance(sums)
    return torch.where(mask != 0, whiten(values, mask, sums, epsilon=epsilon) + mean.to(values.dtype), 0)


def standardise(values: Tensor, mask: Tensor, sums: Tensor, *, epsilon: float = 1e-4) -> Tensor:
    """Shift and scale to mean 0 and standard deviation 1, the form of group-relative methods.

    ``(x - mean) / (std + ε)``: the larger ε is added to the deviation, not to the variance.

    Args:
        values: ``[N]``.
        mask: ``[N]`` non-zero where a value counts; 0 elsewhere in the result.
        sums: ``[3]`` of :func:`moments`, added over processes.
        epsilon: keeps equal values at 0.

    Returns:
        ``[N]``.
    """
    mean, variance = mean_and_variance(sums)
    scaled = (values - mean.to(values.dtype)) / (variance.sqrt() + epsilon).to(values.dtype)
    return torch.where(mask != 0, scaled, 0)
