"""A smooth weight of whole completions."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_align.losses.a2c import policy_gradient
from lit_align.losses.vespo import vespo, vespo_weights

OWNER = torch.tensor([0, 0, 1])


def float64(values):
    return torch.tensor(values, dtype=torch.float64)


def test_weights_by_hand():
    """k = 2, λ = 3, w = 2: e^3 · 4 · e^-6 = 4 e^-3 = 0.199148."""
    assert vespo_weights(float64([math.log(2)]), k=2.0, lambda_=3.0).item() == pytest.approx(
        0.199148, abs=1e-6
    )


@given(st.one_of(st.just(0.0), st.floats(1e-3, 5)), st.floats(0.1, 5), st.floats(-1e4, 1e4))
def test_weights_are_bounded_by_their_peak(k, lambda_, log_ratio):
    """φ is largest at w = k/λ; 1 at w = 1; and a number everywhere, with k = 0 too."""
    weight = vespo_weights(float64([log_ratio]), k=k, lambda_=lambda_).item()
    peak = math.exp(lambda_ - k) * (k / lambda_) ** k if k else math.exp(lambda_)
    assert 0 <= weight <= peak * (1 + 1e-9)
    assert vespo_weights(float64([0.0]), k=k, lambda_=lambda_).item() == pytest.approx(1.0)


def test_loss_by_hand():
    """Completion 0 has log-ratios that sum to log 2, completion 1 none. Good: 0.199148. Bad at ratio 1: 1."""
    old = float64([-1.0, -2.0, -3.0])
    logps = old + float64([math.log(4), -math.log(2), 0.0])
    advantages = float64([1.0, 1.0, -1.0])
    found = vespo(logps, old, advantages, torch.ones(3), OWNER, 2)
    expected = float64([-0.1991482735, -0.1991482735, 1.0]) * logps
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=0)


def test_bad_completions_have_their_own_weight():
    """k = 3, λ = 2, w = 2: e^2 · 8 · e^-4 = 8 e^-2 = 1.082682."""
    old = float64([-1.0])
    found = vespo(old + math.log(2), old, float64([-1.0]), torch.ones(1), torch.zeros(1).long(), 1)
    assert found.item() == pytest.approx(1.0826822659 * (math.log(2) - 1), rel=1e-9)


def test_masked_tokens_are_in_no_weight():
    old, mask = float64([-1.0, -1.0, -1.0]), torch.tensor([1, 0, 1])
    one, other = old + float64([0.5, 9.0, 0.1]), old + float64([0.5, -9.0, 0.1])
    found = [vespo(x, old, torch.ones(3), mask, OWNER, 2)[mask != 0] for x in (one, other)]
    assert torch.equal(*found)


def test_the_weight_has_no_gradient():
    logps = float64([-1.0, -2.0, -3.0]).requires_grad_()
    advantages = float64([1.0, 1.0, -2.0])
    losses = vespo(logps, logps.detach(), advantages, torch.ones(3), OWNER, 2)
    torch.testing.assert_close(losses, policy_gradient(logps, advantages))
    losses.sum().backward()
    torch.testing.assert_close(logps.grad, -advantages)


def test_parameters_are_checked():
    with pytest.raises(ValueError, match="lambda must be positive, got 1 and 0"):
        vespo_weights(torch.zeros(1), k=1, lambda_=0)
