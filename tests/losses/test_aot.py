"""Alignment via optimal transport."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_align.losses.aot import aot, aot_unpaired
from lit_align.losses.dpo import cdpo

leads = st.lists(st.tuples(st.floats(-20, 20), st.floats(-20, 20)), min_size=1, max_size=8)


def test_paired_by_hand():
    """π_w - π_l = 3, 1, 2 and ref_w - ref_l = 0, 0, 6. Sorted: (1, 2, 3) - (0, 0, 6) = 1, 2, -3, which
    belong to the second, third and first pair: log(1 + e^3, e^-1, e^-2) = 3.048587, 0.313262, 0.126928.
    """
    zeros = torch.zeros(3)
    losses = aot(
        torch.tensor([3.0, 1.0, 2.0]),
        zeros,
        torch.tensor([0.0, 0.0, 6.0]),
        zeros,
        beta=1.0,
        label_smoothing=0.0,
    )
    torch.testing.assert_close(losses, torch.tensor([3.048587, 0.313262, 0.126928]))


def test_unpaired_by_hand():
    """Δ_w = 3, 1 and Δ_l = 0, 2. Sorted: (1, 3) - (0, 2) = 1, 1. With ε = 0.1: 0.413262 each."""
    chosen, rejected = torch.tensor([3.0, 1.0]), torch.tensor([0.0, 2.0])
    losses = aot_unpaired(chosen, rejected, beta=1.0, label_smoothing=0.1)
    torch.testing.assert_close(losses, torch.tensor([0.413262, 0.413262]))


@given(leads)
def test_one_pair_alone_is_cdpo(pairs):
    chosen, rejected = torch.tensor(pairs, dtype=torch.float64).T
    for w, r in zip(chosen.split(1), rejected.split(1), strict=True):
        expected = cdpo(w, r, beta=0.3, label_smoothing=0.2)
        zero = torch.zeros_like(w)
        torch.testing.assert_close(aot_unpaired(w, r, beta=0.3, label_smoothing=0.2), expected)
        torch.testing.assert_close(aot(w, r, zero, zero, beta=0.3, label_smoothing=0.2), expected)


@given(leads)
def test_sorting_is_the_cheapest_transport(pairs):
    """The loss is convex in the difference, so no other coupling of the two sides costs less."""
    chosen, rejected = torch.tensor(pairs, dtype=torch.float64).T
    sorted_cost = aot_unpaired(chosen, rejected, beta=0.3, label_smoothing=0.0).sum()
    assert sorted_cost <= cdpo(chosen, rejected, beta=0.3, label_smoothing=0.0).sum() + 1e-9


@given(leads, st.randoms())
def test_who_is_compared_with_whom_does_not_depend_on_the_order(pairs, random):
    chosen, rejected = torch.tensor(pairs, dtype=torch.float64).T
    order = list(range(len(pairs)))
    random.shuffle(order)
    losses = aot_unpaired(chosen, rejected, beta=0.3, label_smoothing=0.1)
    shuffled = aot_unpaired(chosen[order], rejected[order], beta=0.3, label_smoothing=0.1)
    torch.testing.assert_close(losses.sort().values, shuffled.sort().values)


@pytest.mark.parametrize("smoothing", [0.5, -0.1])
def test_a_smoothing_that_is_none_is_refused(smoothing):
    zero = torch.zeros(1)
    with pytest.raises(ValueError, match="aot: label_smoothing"):
        aot(zero, zero, zero, zero, beta=0.1, label_smoothing=smoothing)
    with pytest.raises(ValueError, match="aot_unpaired: label_smoothing"):
        aot_unpaired(zero, zero, beta=0.1, label_smoothing=smoothing)
