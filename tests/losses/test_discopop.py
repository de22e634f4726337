"""The log-ratio modulated loss."""

import pytest
import torch

from lit_align.losses.discopop import discopop


def test_by_hand():
    """x = 0: m = 1/2, ½ log 2 + ½ = 0.846574. τ = 1, x = 1: m = 0.731059,
    0.268941 · 0.313262 + 0.731059 · 0.367879 = 0.353191.
    """
    losses = discopop(torch.tensor([0.0, 1.0]), torch.zeros(2), beta=1.0, tau=1.0)
    torch.testing.assert_close(losses, torch.tensor([0.846574, 0.353191]))


def test_small_tau_is_logistic_below_and_exponential_above():
    """x = -2: log(1 + e²) = 2.126928; x = 2: e^-2 = 0.135335."""
    losses = discopop(torch.tensor([-2.0, 2.0]), torch.zeros(2), beta=1.0, tau=0.01)
    torch.testing.assert_close(losses, torch.tensor([2.126928, 0.135335]))


def test_a_hopeless_pair_is_not_infinity_times_zero():
    """x = -1000, τ = 0.05: m e^1000 is e^-19000, which is 0; what is left is 1000, with slope -1."""
    chosen = torch.tensor([-1000.0], requires_grad=True)
    loss = discopop(chosen, torch.zeros(1), beta=1.0)
    loss.sum().backward()
    assert loss.tolist() == [1000.0]
    assert chosen.grad.tolist() == [-1.0]


def test_tau_must_be_positive():
    with pytest.raises(ValueError, match="discopop: tau must be positive"):
        discopop(torch.zeros(1), torch.zeros(1), beta=0.1, tau=0.0)
