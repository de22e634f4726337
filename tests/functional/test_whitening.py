"""Mean 0 and variance 1 over what counts."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_align.functional.whitening import (
    mean_and_variance,
    moments,
    standardise,
    whiten,
    whiten_keep_mean,
)

ALL = (whiten, whiten_keep_mean, standardise)


def float64(values):
    return torch.tensor(values, dtype=torch.float64)


def test_by_hand():
    """(1, 3) and a masked 99: mean 2, variance 2; (x - 2)/√2 = ∓0.707107."""
    values, mask = float64([1.0, 99.0, 3.0]), float64([1.0, 0.0, 1.0])
    sums = moments(values, mask)
    mean, variance = mean_and_variance(sums)
    assert (mean.item(), variance.item()) == (2.0, 2.0)
    root = 0.70710678
    torch.testing.assert_close(whiten(values, mask, sums), float64([-root, 0.0, root]), rtol=1e-7, atol=0)
    kept = whiten_keep_mean(values, mask, sums)
    torch.testing.assert_close(kept, float64([2 - root, 0.0, 2 + root]), rtol=1e-7, atol=0)
    # The deviation is √2 + 10^-4.
    standard = standardise(values, mask, sums)
    torch.testing.assert_close(standard, float64([-0.70705678, 0.0, 0.70705678]), rtol=1e-7, atol=0)


@pytest.mark.parametrize("function", ALL)
@pytest.mark.parametrize("values", [[], [4.0], [4.0, 4.0, 4.0]])
def test_without_spread_there_is_nothing(function, values):
    """No value, one value, equal values: the deviations are 0, and nothing is no number."""
    values = float64(values)
    mask = torch.ones_like(values)
    expected = values if function is whiten_keep_mean else values * 0
    torch.testing.assert_close(function(values, mask, moments(values, mask)), expected)


@given(st.lists(st.tuples(st.floats(-9, 9), st.booleans()), min_size=1, max_size=12), st.integers(0, 12))
def test_processes_add_their_sums(pairs, cut):
    """What two processes find with added sums is what one finds with everything."""
    values = float64([v for v, _ in pairs])
    mask = float64([float(m) for _, m in pairs])
    whole = moments(values, mask)
    halves = (slice(None, cut), slice(cut, None))
    sums = sum(moments(values[half], mask[half]) for half in halves)
    for function in ALL:
        parts = [function(values[half], mask[half], sums) for half in halves]
        torch.testing.assert_close(torch.cat(parts), function(values, mask, whole), rtol=1e-6, atol=1e-6)


@given(st.lists(st.tuples(st.floats(-9, 9), st.booleans()), min_size=1, max_size=12))
def test_what_is_masked_is_not_seen(pairs):
    values = float64([v for v, _ in pairs])
    mask = float64([float(m) for _, m in pairs])
    garbage = torch.where(mask != 0, values, torch.nan)
    for function in ALL:
        expected = function(values, mask, moments(values, mask))
        assert torch.equal(function(garbage, mask, moments(garbage, mask)), expected)
        assert not expected[mask == 0].any()


def test_a_large_mean_does_not_eat_the_variance():
    """10^4 ± 1 in float32: the variance is 2 only if the squares are summed in float64."""
    values = torch.tensor([9999.0, 10001.0])
    found = whiten(values, torch.ones(2), moments(values, torch.ones(2)))
    torch.testing.assert_close(found, torch.tensor([-0.70710678, 0.70710678]), rtol=1e-6, atol=0)


def test_dtype_is_kept():
    values = torch.randn(4)
    for function in ALL:
        assert function(values, torch.ones(4), moments(values, torch.ones(4))).dtype == torch.float32
