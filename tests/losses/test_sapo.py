"""A soft gate."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_align.losses.sapo import sapo


def float64(values):
    return torch.tensor(values, dtype=torch.float64)


def test_by_hand():
    """τ = 1 and 2. At ratio 1, σ = ½: -2 A and -A. At ratio 2: σ(1) = 0.731059 and σ(2) = 0.880797."""
    ratios, advantages = float64([1.0, 1.0, 2.0, 2.0]), float64([1.0, -1.0, 1.0, -1.0])
    found = sapo(ratios, advantages, temperature_positive=1.0, temperature_negative=2.0)
    expected = float64([-2.0, 1.0, -4 * 0.7310585786, 2 * 0.8807970780])
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)


@given(st.floats(0.1, 5), st.floats(0.1, 5), st.sampled_from([-2.0, 3.0]))
def test_at_ratio_one_its_gradient_is_the_policy_gradient(positive, negative, advantage):
    ratio = float64([1.0]).requires_grad_()
    sapo(
        ratio, float64([advantage]), temperature_positive=positive, temperature_negative=negative
    ).sum().backward()
    assert ratio.grad.item() == pytest.approx(-advantage)


def test_the_gradient_fades_on_both_sides():
    ratios = float64([0.0, 1.0, 2.0, 10.0]).requires_grad_()
    sapo(ratios, float64([1.0] * 4)).sum().backward()
    size = ratios.grad.abs().tolist()
    assert size[0] < size[1]
    assert size[1] > size[2] > size[3] > 0
    assert size[0] == pytest.approx(size[2])


def test_temperatures_are_positive():
    with pytest.raises(ValueError, match=r"temperatures must be positive, got 0 and 1.05"):
        sapo(torch.ones(1), torch.ones(1), temperature_positive=0)


def test_gradcheck():
    ratios = float64([0.5, 1.0, 3.0]).requires_grad_()
    assert torch.autograd.gradcheck(lambda r: sapo(r, float64([1.0, -1.0, 2.0])), ratios)
