"""Noise contrastive alignment for pairs."""

import math

import pytest
import torch

from lit_align.losses.nca import nca_pair


def test_by_hand():
    """r_w = 1, r_l = -1: 0.313262 + ½ · 1.313262 + ½ · 0.313262 = 1.126524. At 0: 2 log 2."""
    losses = nca_pair(torch.tensor([2.0, 0.0]), torch.tensor([-2.0, 0.0]), beta=0.5)
    torch.testing.assert_close(losses, torch.tensor([1.126524, 2 * math.log(2)]))


def test_the_chosen_likelihood_has_an_optimum_of_its_own():
    """d/dr_w = -σ(-r_w) + ½ σ(r_w) = 0 where σ(r_w) = 2/3, at r_w = log 2: pushed no further."""
    chosen = torch.tensor([math.log(2)], dtype=torch.float64, requires_grad=True)
    nca_pair(chosen, torch.zeros(1, dtype=torch.float64), beta=1.0).sum().backward()
    assert chosen.grad.item() == pytest.approx(0, abs=1e-12)
