"""Anchored preference optimisation."""

import math

import torch

from lit_align.losses.apo import apo_down, apo_zero


def test_zero_by_hand():
    """σ(r_w) = 3/4 at r_w = log 3, σ(r_l) = 1/4 at -log 3: 1/4 + 1/4 = 1/2. At the reference 1."""
    w = torch.tensor([math.log(3) / 0.1, 0.0])
    torch.testing.assert_close(apo_zero(w, -w, beta=0.1), torch.tensor([0.5, 1.0]))


def test_down_by_hand():
    """σ(log 3) = 3/4; σ(2 log 3) = 9/10: 3/4 + 1 - 9/10 = 0.85. At the reference 1."""
    w = torch.tensor([math.log(3) / 0.1, 0.0])
    torch.testing.assert_close(apo_down(w, -w, beta=0.1), torch.tensor([0.85, 1.0]))


def test_zero_raises_the_chosen_and_down_lowers_it():
    """At the reference: d/dr_w is -1/4 for zero; for down 1/4 - 1/4 = 0, and below it the chosen falls."""
    gradients = {}
    for loss in (apo_zero, apo_down):
        chosen = torch.tensor([0.0, -1.0], dtype=torch.float64, requires_grad=True)
        rejected = torch.tensor([0.0, -4.0], dtype=torch.float64, requires_grad=True)
        loss(chosen, rejected, beta=1.0).sum().backward()
        gradients[loss.__name__] = chosen.grad.tolist()
        assert (rejected.grad > 0).all()
    assert gradients["apo_zero"][0] == -0.25
    assert gradients["apo_zero"][1] < 0
    assert gradients["apo_down"][0] == 0
    assert gradients["apo_down"][1] > 0
