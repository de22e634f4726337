"""Efficient exact optimisation for pairs."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_align.losses.exo import exo_pair


def test_by_hand():
    """q = 1/2, ε = 0.1: ½ (log ½ - log 0.9) + ½ (log ½ - log 0.1) = -0.693147 + 1.203973 = 0.510826."""
    (loss,) = exo_pair(torch.zeros(1), torch.zeros(1), beta=0.1, label_smoothing=0.1)
    assert loss.item() == pytest.approx(0.510826, rel=1e-5)


def test_zero_where_the_policy_agrees_with_the_label():
    """q = 0.9 = 1 - ε, at βd = log 9; and there the gradient is 0 too."""
    chosen = torch.tensor([math.log(9) / 0.5], dtype=torch.float64, requires_grad=True)
    loss = exo_pair(chosen, torch.zeros(1, dtype=torch.float64), beta=0.5, label_smoothing=0.1)
    (gradient,) = torch.autograd.grad(loss.sum(), chosen)
    assert abs(loss.item()) < 1e-12
    assert abs(gradient.item()) < 1e-12


@given(st.floats(-1e4, 1e4), st.floats(1e-6, 0.49))
def test_a_divergence_is_not_negative(lead, smoothing):
    loss = exo_pair(
        torch.tensor([lead], dtype=torch.float64), torch.zeros(1), beta=0.1, label_smoothing=smoothing
    )
    assert loss.item() >= -1e-12


def test_saturates_at_the_log_of_the_smoothing():
    """q = 1: -log(1 - ε); q = 0: -log ε."""
    losses = exo_pair(torch.tensor([1e4, -1e4]), torch.zeros(2), beta=1.0, label_smoothing=0.1)
    torch.testing.assert_close(losses, torch.tensor([-math.log(0.9), -math.log(0.1)]))


@pytest.mark.parametrize("smoothing", [0.0, 0.5, -1.0])
def test_smoothing_must_lie_inside(smoothing):
    with pytest.raises(ValueError, match="exo_pair: label_smoothing"):
        exo_pair(torch.zeros(1), torch.zeros(1), beta=0.1, label_smoothing=smoothing)
