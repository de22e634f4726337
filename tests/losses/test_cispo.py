"""The weight is clipped, and not the token."""

import pytest
import torch

from lit_align.losses.a2c import policy_gradient
from lit_align.losses.cispo import cispo


def test_by_hand():
    """Cap 2: ratios ½ and 5 weigh ½ and 2; log-probs -3: -½·1·(-3) and -2·(-1)·(-3)."""
    found = cispo(
        torch.tensor([0.5, 5.0]), torch.tensor([-3.0, -3.0]), torch.tensor([1.0, -1.0]), ratio_cap=2.0
    )
    assert found.tolist() == [1.5, -6.0]


def test_every_token_keeps_its_gradient():
    """The bounded weight times A, however large the ratio; and none through the ratio."""
    ratios, logps = torch.tensor([0.5, 5.0, 100.0], requires_grad=True), torch.zeros(3, requires_grad=True)
    cispo(ratios, logps, torch.tensor([1.0, 1.0, -1.0]), ratio_cap=2.0).sum().backward()
    assert logps.grad.tolist() == [-0.5, -2.0, 2.0]
    assert ratios.grad is None


def test_at_ratio_one_it_is_the_policy_gradient():
    logps, advantages = torch.tensor([-1.0, -2.0]), torch.tensor([3.0, -4.0])
    assert torch.equal(cispo(torch.ones(2), logps, advantages), policy_gradient(logps, advantages))


def test_the_cap_is_positive():
    with pytest.raises(ValueError, match="ratio_cap must be positive, got 0"):
        cispo(*torch.ones(3, 1), ratio_cap=0)


def test_gradcheck():
    logps = torch.tensor([-1.0, -2.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: cispo(torch.tensor([0.5, 9.0]), x, torch.ones(2)), logps)
