"""Log-ratios of the present policy to the old one, at every level."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_align.functional.importance import IMPORTANCE, masked_weights, truncated_weights

OWNER = torch.tensor([0, 0, 1])


def float64(values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("token", [1.0, -3.0, 2.0]),
        ("sequence", [-1.0, -1.0, 2.0]),
        ("sequence_token", [-1.0, -1.0, 2.0]),
        ("sequence_sum", [-2.0, -2.0, 2.0]),
    ],
)
def test_by_hand(level, expected):
    """Log-ratios 1 and -3, and 2: mean -1, sum -2."""
    old = float64([-4.0, -4.0, -4.0])
    new = old + float64([1.0, -3.0, 2.0])
    assert IMPORTANCE[level](new, old, torch.ones(3), OWNER, 2).tolist() == expected


@pytest.mark.parametrize("level", IMPORTANCE)
def test_the_same_policy_has_ratio_one(level):
    logps = torch.tensor([-1.0, -2.0, -3.0])
    assert not IMPORTANCE[level](logps, logps, torch.ones(3), OWNER, 2).any()


@pytest.mark.parametrize("level", IMPORTANCE)
def test_what_is_masked_is_not_seen(level):
    """Neither in the value of the others, nor in the gradient, whatever stands there."""
    new = float64([1.0, 5.0, 2.0]).requires_grad_()
    bad = float64([1.0, -math.inf, 2.0]).requires_grad_()
    mask, old = torch.tensor([1, 0, 1]), torch.zeros(3, dtype=torch.float64)
    kept = mask != 0
    first, second = (IMPORTANCE[level](x, old, mask, OWNER, 2) for x in (new, bad))
    assert torch.equal(first[kept], second[kept])
    assert first[kept].tolist() == [1.0, 2.0]
    first[kept].sum().backward()
    assert new.grad.tolist() == [1.0, 0.0, 1.0]


def test_gradients():
    """Mean: each token shares 1/|y| of what every token gets. GSPO-token: to each its own."""
    slope = float64([1.0, 2.0, 4.0])
    for level, expected in (
        ("token", [1.0, 2.0, 4.0]),
        ("sequence", [1.5, 1.5, 4.0]),
        ("sequence_token", [1.0, 2.0, 4.0]),
        ("sequence_sum", [3.0, 3.0, 4.0]),
    ):
        logps = torch.zeros(3, dtype=torch.float64, requires_grad=True)
        (IMPORTANCE[level](logps, logps, torch.ones(3), OWNER, 2) * slope).sum().backward()
        assert logps.grad.tolist() == expected, level


@given(st.lists(st.lists(st.tuples(st.floats(-3, 3), st.booleans()), max_size=5), min_size=1, max_size=4))
def test_ragged_equals_one_sequence_at_a_time(lists):
    values = float64([v for one in lists for v, _ in one])
    mask = float64([float(m) for one in lists for _, m in one])
    owner = torch.tensor([i for i, one in enumerate(lists) for _ in one], dtype=torch.long)
    for function in IMPORTANCE.values():
        together = function(values, values * 0, mask, owner, len(lists))
        for i in range(len(lists)):
            own = owner == i
            alone = function(values[own], values[own] * 0, mask[own], owner[own] * 0, 1)
            torch.testing.assert_close(together[own], alone, rtol=1e-12, atol=1e-12)


def test_weights_against_a_foreign_sampler():
    """Ratios ½, 2 and 8 at a cap of 4: truncated ½, 2, 4; masked ½, 2, 0."""
    log_ratios = float64([0.5, 2.0, 8.0]).log().requires_grad_()
    truncated, masked = truncated_weights(log_ratios, cap=4.0), masked_weights(log_ratios, cap=4.0)
    torch.testing.assert_close(truncated, float64([0.5, 2.0, 4.0]))
    torch.testing.assert_close(masked, float64([0.5, 2.0, 0.0]))
    assert not truncated.requires_grad
    assert not masked.requires_grad
    with pytest.raises(ValueError, match="must be positive, got 0"):
        truncated_weights(log_ratios, cap=0.0)
