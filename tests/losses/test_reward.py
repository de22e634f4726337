"""Losses of reward models."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_align.losses.reward import bradley_terry, centering

rewards = st.floats(-50, 50)


def test_bradley_terry_by_hand():
    """r_w - r_l = 1: log(1 + e^-1) = 0.313262; the other way round 1.313262."""
    chosen, rejected = torch.tensor([2.0, 1.0]), torch.tensor([1.0, 2.0])
    torch.testing.assert_close(bradley_terry(chosen, rejected), torch.tensor([0.313262, 1.313262]))


def test_margin_moves_the_target():
    """A lead of 1 with a margin of 1 is no lead: log 2. A margin of 0 is none."""
    chosen, rejected = torch.tensor([2.0, 2.0]), torch.tensor([1.0, 1.0])
    losses = bradley_terry(chosen, rejected, margin=torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(losses, torch.tensor([math.log(2), 0.313262]))


def test_centering_by_hand():
    """(2 + 1)^2 = 9; opposite rewards cost nothing."""
    assert centering(torch.tensor([2.0, 3.0]), torch.tensor([1.0, -3.0])).tolist() == [9.0, 0.0]


def test_equal_rewards_cost_log_two():
    torch.testing.assert_close(bradley_terry(torch.ones(3), torch.ones(3)), torch.full((3,), math.log(2)))


@given(chosen=rewards, rejected=rewards, margin=rewards)
def test_bradley_terry_is_the_likelihood_of_the_preference(chosen, rejected, margin):
    """p = e^r_w / (e^r_w + e^(r_l + m)), and p(w wins) + p(l wins) = 1 with the margin turned round."""
    one = torch.tensor([chosen, rejected, margin], dtype=torch.float64)
    loss = bradley_terry(one[:1], one[1:2], margin=one[2:]).item()
    lead = chosen - rejected - margin
    assert math.isclose(loss, math.log1p(math.exp(-lead)), rel_tol=1e-9, abs_tol=1e-12)
    back = bradley_terry(one[1:2], one[:1], margin=-one[2:]).item()
    assert math.isclose(math.exp(-loss) + math.exp(-back), 1, rel_tol=1e-9)


def test_extreme_rewards_are_finite():
    chosen = torch.tensor([1e4, -1e4], requires_grad=True)
    rejected = torch.tensor([-1e4, 1e4], requires_grad=True)
    losses = bradley_terry(chosen, rejected)
    losses.sum().backward()
    assert losses.tolist() == [0.0, 2e4]
    assert chosen.grad.tolist() == [0.0, -1.0]
    assert rejected.grad.tolist() == [0.0, 1.0]


def test_gradcheck():
    values = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    chosen, rejected, margin = (row.clone().requires_grad_() for row in values)
    assert torch.autograd.gradcheck(lambda w, r, m: bradley_terry(w, r, margin=m), (chosen, rejected, margin))
    assert torch.autograd.gradcheck(centering, (chosen, rejected))
