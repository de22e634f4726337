"""Length-desensitised log-probs."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_align.losses.ld_dpo import desensitised_logps


def test_by_hand():
    """Lengths 3 and 2, l = 2, α = ½: -1 - 2 - 3/2 = -4.5, and -4 - 5 = -9."""
    logps = torch.tensor([-1.0, -2.0, -3.0, -4.0, -5.0])
    owner = torch.tensor([0, 0, 0, 1, 1])
    sums = desensitised_logps(logps, torch.ones(5), owner, torch.tensor([2, 2]), alpha=0.5)
    assert sums.tolist() == [-4.5, -9.0]


def test_context_is_no_step_towards_the_shared_length():
    """Weights 1 0 1 1 with l = 2: the third and the first token are shared, the fourth is the tail."""
    logps = torch.tensor([-1.0, -100.0, -2.0, -4.0])
    weights = torch.tensor([1.0, 0.0, 1.0, 1.0])
    sums = desensitised_logps(logps, weights, torch.zeros(4, dtype=torch.long), torch.tensor([2]), alpha=0.5)
    assert sums.tolist() == [-5.0]


def test_an_empty_completion_sums_to_nothing():
    logps, owner = torch.tensor([-1.0, -2.0]), torch.tensor([1, 1])
    sums = desensitised_logps(logps, torch.ones(2), owner, torch.tensor([0, 0]), alpha=0.25)
    assert sums.tolist() == [0.0, -0.75]


@given(st.lists(st.lists(st.floats(-10, 0), max_size=6), min_size=2, max_size=2), st.floats(0, 1))
def test_against_slices(completions, alpha):
    """The equation, with Python's slices: Σ first l + α Σ rest."""
    shared = min(len(c) for c in completions)
    flat = torch.tensor([x for c in completions for x in c], dtype=torch.float64)
    owner = torch.tensor([i for i, c in enumerate(completions) for _ in c], dtype=torch.long)
    ours = desensitised_logps(flat, torch.ones(len(flat)), owner, torch.tensor([shared] * 2), alpha=alpha)
    expected = [sum(c[:shared]) + alpha * sum(c[shared:]) for c in completions]
    torch.testing.assert_close(ours, torch.tensor(expected, dtype=torch.float64))


def test_alpha_one_is_the_plain_sum_and_zero_has_no_gradient_in_the_tail():
    logps = torch.tensor([-1.0, -2.0, -3.0], requires_grad=True)
    owner, shared = torch.zeros(3, dtype=torch.long), torch.tensor([1])
    assert desensitised_logps(logps, torch.ones(3), owner, shared, alpha=1.0).tolist() == [-6.0]
    desensitised_logps(logps, torch.ones(3), owner, shared, alpha=0.0).sum().backward()
    assert logps.grad.tolist() == [1.0, 0.0, 0.0]


def test_alpha_must_be_a_share():
    with pytest.raises(ValueError, match="alpha weighs the tail"):
        desensitised_logps(torch.zeros(1), torch.ones(1), torch.tensor([0]), torch.tensor([1]), alpha=1.5)
