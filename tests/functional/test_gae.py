"""Generalised advantage estimation and returns, of ragged sequences."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_align.functional.gae import discounted_returns, gae

step = st.tuples(st.floats(-5, 5), st.floats(-5, 5), st.sampled_from([0, 1, 1]))
batches = st.lists(st.lists(step, max_size=9), min_size=1, max_size=5)
rates = st.sampled_from([0.0, 0.5, 0.95, 1.0])


def float64(values):
    return torch.tensor(values, dtype=torch.float64)


def flat(lists):
    rewards, values, mask = (float64([x[i] for one in lists for x in one]) for i in range(3))
    owner = torch.tensor([i for i, one in enumerate(lists) for _ in one], dtype=torch.long)
    return rewards, values, mask, owner


def by_loop(rewards, values, gamma, gae_lambda, final=0.0):
    """Backwards, one token at a time: δ_t = r_t + γ V_{t+1} - V_t, A_t = δ_t + γλ A_{t+1}."""
    found, later, next_value = [], 0.0, final
    for reward, value in zip(reversed(rewards), reversed(values), strict=True):
        later = reward + gamma * next_value - value + gamma * gae_lambda * later
        found.append(later)
        next_value = value
    return found[::-1]


def test_by_hand():
    """r = (0, 1), V = (½, ¼), γ = 1, λ = ½: δ = (¼ - ½, 1 - ¼) = (-¼, ¾); A = (-¼ + ⅜, ¾)."""
    one = torch.ones(2)
    found = gae(float64([0.0, 1.0]), float64([0.5, 0.25]), one, torch.zeros(2).long(), gae_lambda=0.5)
    assert found.advantages.tolist() == [0.125, 0.75]
    assert found.returns.tolist() == [0.625, 1.0]


def test_returns_by_hand():
    """(1, 2, 4) at γ = ½: 1 + 1 + 1, 2 + 2, 4. A second sequence of 8 stays by itself."""
    rewards, owner = float64([1.0, 2.0, 4.0, 8.0]), torch.tensor([0, 0, 0, 1])
    assert discounted_returns(rewards, torch.ones(4), owner, gamma=0.5).tolist() == [3.0, 4.0, 4.0, 8.0]


@given(batches, rates, rates)
def test_against_a_loop_one_sequence_at_a_time(lists, gamma, gae_lambda):
    """Masked tokens are no steps: the loop runs over the others alone."""
    rewards, values, mask, owner = flat(lists)
    found = gae(rewards, values, mask, owner, gamma=gamma, gae_lambda=gae_lambda)
    expected, targets, sums = [], [], []
    for one in lists:
        kept = [(r, v) for r, v, m in one if m]
        advantages = iter(by_loop([r for r, _ in kept], [v for _, v in kept], gamma, gae_lambda))
        returns = iter(by_loop([r for r, _ in kept], [0.0] * len(kept), gamma, 1.0))
        for _, value, counts in one:
            advantage = next(advantages) if counts else 0.0
            expected.append(advantage)
            targets.append(advantage + value if counts else 0.0)
            sums.append(next(returns) if counts else 0.0)
    torch.testing.assert_close(found.advantages, float64(expected), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.returns, float64(targets), rtol=1e-10, atol=1e-10)
    sums = float64(sums)
    torch.testing.assert_close(
        discounted_returns(rewards, mask, owner, gamma=gamma), sums, rtol=1e-10, atol=1e-10
    )


@given(batches, rates)
def test_lambda_one_is_the_return_less_the_value(lists, gamma):
    rewards, values, mask, owner = flat(lists)
    found = gae(rewards, values, mask, owner, gamma=gamma, gae_lambda=1.0)
    returns = discounted_returns(rewards, mask, owner, gamma=gamma)
    torch.testing.assert_close(found.returns, returns, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.advantages, (returns - values) * mask, rtol=1e-10, atol=1e-10)


def test_lambda_zero_is_the_one_step_error():
    rewards, values, owner = float64([1.0, 2.0, 4.0]), float64([3.0, 5.0, 7.0]), torch.tensor([0, 0, 1])
    found = gae(rewards, values, torch.ones(3), owner, gamma=0.5, gae_lambda=0.0)
    assert found.advantages.tolist() == [1 + 2.5 - 3, 2 - 5, 4 - 7]


def test_a_completion_that_was_cut_goes_on():
    """One token, r = 1, V = 2, and a state worth 10 after it: 1 + ½ 10 - 2 = 4; the other ends: 1 - 2."""
    found = gae(
        float64([1.0, 1.0]), float64([2.0, 2.0]), torch.ones(2), torch.tensor([0, 1]), gamma=0.5,
        final_values=float64([10.0, 0.0]),
    )  # fmt: skip
    assert found.advantages.tolist() == [4.0, -1.0]


def test_what_is_masked_is_not_seen():
    nan = float("nan")
    rewards, values = float64([1.0, nan, 2.0]), float64([0.5, nan, 0.25])
    mask, owner = torch.tensor([1, 0, 1]), torch.zeros(3).long()
    found = gae(rewards, values, mask, owner)
    assert found.advantages.tolist() == pytest.approx([1 + 0.25 - 0.5 + 0.95 * 1.75, 0.0, 1.75])


def test_a_fault_stays_in_its_sequence():
    rewards = torch.tensor([1.0, 1.0, float("nan"), 1.0])
    owner = torch.tensor([0, 0, 1, 2])
    found = gae(rewards, torch.zeros(4), torch.ones(4), owner, gae_lambda=1.0).advantages
    assert found.isnan().tolist() == [False, False, True, False]


def test_float64_stays_exact():
    """0.95 in float32 is 1.6e-8 off: enough to be seen after a hundred tokens."""
    rewards = torch.zeros(100, dtype=torch.float64)
    rewards[-1] = 1.0
    found = gae(rewards, rewards * 0, torch.ones(100), torch.zeros(100).long())
    assert found.advantages[0].item() == pytest.approx(0.95**99, rel=1e-13)


def test_nothing_is_nothing():
    none = torch.zeros(0)
    assert gae(none, none, none, none.long()).advantages.shape == (0,)
    assert gae(torch.ones(2), torch.ones(2), torch.zeros(2), torch.zeros(2).long()).returns.tolist() == [0, 0]


def test_a_padded_batch_is_refused():
    with pytest.raises(ValueError, match=r"must be flat and of one length \[N\], got shapes"):
        gae(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 3).long())


def test_no_gradient():
    values = torch.zeros(2, requires_grad=True)
    found = gae(torch.ones(2), values, torch.ones(2), torch.zeros(2).long())
    assert not found.advantages.requires_grad
    assert not found.returns.requires_grad
