"""Clipped surrogate and value losses."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_align.losses.ppo import (
    clip_bounds,
    clipped_high,
    clipped_low,
    clipped_squared_error,
    clipped_surrogate,
    squared_error,
    values_clipped,
)


def float64(values):
    return torch.tensor(values, dtype=torch.float64)


def test_surrogate_by_hand():
    """ε = ¼. A = 1: ρ = ½, 1, 2 give -½, -1, -1¼. A = -1: ¾ (bounded below), 1, 2 (not bounded above)."""
    ratios = float64([0.5, 1.0, 2.0])
    assert clipped_surrogate(ratios, float64([1.0] * 3), clip_range=0.25).tolist() == [-0.5, -1.0, -1.25]
    assert clipped_surrogate(ratios, float64([-1.0] * 3), clip_range=0.25).tolist() == [0.75, 1.0, 2.0]


def test_clip_higher_moves_the_upper_bound_alone():
    ratios, good, bad = float64([0.5, 2.0]), float64([1.0, 1.0]), float64([-1.0, -1.0])
    assert clipped_surrogate(ratios, good, clip_range=0.25, clip_range_high=0.5).tolist() == [-0.5, -1.5]
    assert clipped_surrogate(ratios, bad, clip_range=0.25, clip_range_high=0.5).tolist() == [0.75, 2.0]


def test_where_it_is_clipped_there_is_no_gradient():
    """And nowhere else: what clipped_low and clipped_high say."""
    ratios = float64([0.5, 1.0, 2.0, 0.5, 1.0, 2.0]).requires_grad_()
    advantages = float64([3.0, 3.0, 3.0, -3.0, -3.0, -3.0])
    clipped_surrogate(ratios, advantages, clip_range=0.25).sum().backward()
    low = clipped_low(ratios, advantages, clip_range=0.25)
    high = clipped_high(ratios, advantages, clip_range=0.25)
    assert low.tolist() == [False, False, False, True, False, False]
    assert high.tolist() == [False, False, True, False, False, False]
    assert torch.equal(ratios.grad == 0, low | high)
    assert torch.equal(ratios.grad[~(low | high)], -advantages[~(low | high)])


@given(st.floats(0.01, 100), st.floats(-5, 5), st.floats(0, 0.9))
def test_it_is_a_lower_bound_of_what_is_gained(ratio, advantage, clip_range):
    loss = clipped_surrogate(float64([ratio]), float64([advantage]), clip_range=clip_range)
    assert loss.item() >= -ratio * advantage - 1e-12
    if clip_bounds(clip_range)[0] <= ratio <= clip_bounds(clip_range)[1]:
        assert loss.item() == pytest.approx(-ratio * advantage)


def test_at_ratio_one_it_is_the_policy_gradient():
    """Value -A, gradient -A: the first minibatch of every round."""
    advantages = float64([2.0, -3.0, 0.0])
    ratios = torch.ones_like(advantages).requires_grad_()
    losses = clipped_surrogate(ratios, advantages)
    losses.sum().backward()
    assert torch.equal(losses, -advantages)
    assert torch.equal(ratios.grad, -advantages)


def test_values_by_hand():
    """R = 0, V_old = 1, ε = ½. V = 0.25 is seen as ½: ½ ¼; V = 3 is itself: ½ 9; V = 1.25: ½ 1.5625."""
    values, old, returns = float64([0.25, 3.0, 1.25]), float64([1.0] * 3), float64([0.0] * 3)
    found = clipped_squared_error(values, old, returns, clip_range=0.5)
    assert found.tolist() == [0.125, 4.5, 0.78125]
    assert values_clipped(values, old, returns, clip_range=0.5).tolist() == [True, False, False]
    assert squared_error(values, returns).tolist() == [0.03125, 4.5, 0.78125]


def test_clipped_values_have_no_gradient():
    values = float64([0.25, 3.0]).requires_grad_()
    clipped_squared_error(values, float64([1.0, 1.0]), float64([0.0, 0.0]), clip_range=0.5).sum().backward()
    assert values.grad.tolist() == [0.0, 3.0]


@given(st.floats(-5, 5), st.floats(-5, 5), st.floats(-5, 5))
def test_clipping_never_lowers_the_value_loss(value, old, target):
    value, old, target = float64([value]), float64([old]), float64([target])
    assert clipped_squared_error(value, old, target) >= squared_error(value, target)
    wide = clipped_squared_error(value, old, target, clip_range=100.0)
    torch.testing.assert_close(wide, squared_error(value, target))


def test_negative_ranges_are_refused():
    with pytest.raises(ValueError, match=r"clip ranges must not be negative, got -0.1"):
        clipped_surrogate(torch.ones(1), torch.ones(1), clip_range=-0.1)
    with pytest.raises(ValueError, match="clip range of values must not be negative"):
        clipped_squared_error(*torch.ones(3, 1), clip_range=-0.1)


def test_gradcheck():
    ratios, advantages, old = float64([0.5, 0.9, 1.1, 2.0]), float64([1.0, -1.0, 2.0, -2.0]), torch.zeros(4)
    assert torch.autograd.gradcheck(lambda r: clipped_surrogate(r, advantages), ratios.requires_grad_())
    values = float64([-1.0, 0.1, 0.15, 1.0]).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: clipped_squared_error(v, old.double(), advantages), values)
    assert torch.autograd.gradcheck(lambda v: squared_error(v, advantages), values)
