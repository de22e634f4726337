"""Clipping on both sides."""

import pytest
import torch

from lit_align.losses.grpo import grpo
from lit_align.losses.ppo import clipped_surrogate


def test_delta_by_hand():
    """ε = ¼, δ = 2. A bad token of ratio 5 weighs 2, one of 1½ weighs 1½; a good one is 1¼ as before."""
    ratios, advantages = torch.tensor([5.0, 1.5, 5.0]), torch.tensor([-1.0, -1.0, 1.0])
    assert grpo(ratios, advantages, clip_range=0.25, delta=2.0).tolist() == [2.0, 1.5, -1.25]
    assert grpo(ratios, advantages, clip_range=0.25).tolist() == [5.0, 1.5, -1.25]


def test_above_delta_there_is_no_gradient():
    ratios = torch.tensor([5.0, 1.5], requires_grad=True)
    grpo(ratios, torch.tensor([-1.0, -1.0]), delta=2.0).sum().backward()
    assert ratios.grad.tolist() == [0.0, 1.0]


def test_without_delta_it_is_ppo():
    torch.manual_seed(0)
    ratios, advantages = torch.rand(50) * 3, torch.randn(50)
    options = {"clip_range": 0.1, "clip_range_high": 0.3}
    assert torch.equal(grpo(ratios, advantages, **options), clipped_surrogate(ratios, advantages, **options))
    assert torch.equal(grpo(ratios, advantages, delta=9.0), grpo(ratios, advantages))


def test_delta_must_leave_room():
    with pytest.raises(ValueError, match=r"delta must be above the upper clip bound 1.28, got 1.2"):
        grpo(torch.ones(1), torch.ones(1), clip_range_high=0.28, delta=1.2)


def test_gradcheck():
    ratios = torch.tensor([0.5, 0.9, 1.1, 3.0], dtype=torch.float64, requires_grad=True)
    advantages = torch.tensor([1.0, -1.0, 2.0, -2.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda r: grpo(r, advantages, delta=2.0), ratios)
