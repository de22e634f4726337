"""Identity preference optimisation."""

import pytest
import torch

from lit_align.losses.ipo import ipo


def test_by_hand():
    """β = 1/4: the target lead is 2. 6/3 - 4/4 = 1: (1 - 2)² = 1. Nothing at all: (0 - 2)² = 4."""
    losses = ipo(
        torch.tensor([6.0, 0.0]),
        torch.tensor([4.0, 0.0]),
        torch.tensor([3, 0]),
        torch.tensor([4, 0]),
        beta=0.25,
    )
    assert losses.tolist() == [1.0, 4.0]


def test_sums_are_lengths_of_one():
    """(6 - 4 - 2)² = 0."""
    one = torch.ones(1)
    assert ipo(torch.tensor([6.0]), torch.tensor([4.0]), one, one, beta=0.25).tolist() == [0.0]


def test_the_minimum_is_the_target_lead():
    """The gradient is 2 (lead - 1/(2β)) / |y|: zero at the target, and it pulls an overshoot back."""
    chosen = torch.tensor([2.0, 5.0], requires_grad=True)
    ipo(chosen, torch.zeros(2), torch.ones(2), torch.ones(2), beta=0.25).sum().backward()
    assert chosen.grad.tolist() == [0.0, 6.0]


def test_beta_must_be_positive():
    with pytest.raises(ValueError, match="ipo: beta must be positive"):
        ipo(torch.zeros(1), torch.zeros(1), torch.ones(1), torch.ones(1), beta=0.0)
