"""Sums over the pieces of a flat batch: one completion after another, no padding."""

from torch import Tensor


def segment_sum(values: Tensor, sequence: Tensor, count: int) -> Tensor:
    """Sum of the values of each piece.

    Args:
        values: ``[N]``.
        sequence: ``[N]`` index of the piece each value belongs to.
        count: ``C``, the number of pieces; one without values sums to 0.

    Returns:
        ``[C]``.

    >>> import torch
    >>> segment_sum(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0, 0, 2]), 3)
    tensor([3., 0., 4.])
    """
    return values.new_zeros(count).index_add(0, sequence, values)


def segment_mean(values: Tensor, weights: Tensor, sequence: Tensor, count: int) -> Tensor:
    """Weighted mean of the values of each piece.

    Args:
        values: ``[N]``.
        weights: ``[N]`` non-negative.
        sequence: ``[N]`` index of the piece each value belongs to.
        count: ``C``, the number of pieces.

    Returns:
        ``[C]``; 0 where the weights of a piece sum to 0.
    """
    weights = weights.to(values.dtype)
    mass = segment_sum(weights, sequence, count)
    return segment_sum(values * weights, sequence, count) / mass.masked_fill(mass == 0, 1)


def segment_positions(counted: Tensor, sequence: Tensor, count: int) -> Tensor:
    """How many counted values of its piece stand before each value.

    Args:
        counted: ``[N]`` bool.
        sequence: ``[N]`` index of the piece each value belongs to, ascending.
        count: ``C``, the number of pieces.

    Returns:
        ``[N]`` int64.

    >>> import torch
    >>> segment_positions(torch.tensor([True, False, True, True]), torch.tensor([0, 0, 0, 1]), 2)
    tensor([0, 1, 1, 0])
    """
    counted = counted.long()
    totals = segment_sum(counted, sequence, count)
    before = totals.cumsum(0) - totals
    return counted.cumsum(0) - counted - before[sequence]
