"""Binary classifier optimisation for pairs."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_align.losses.bco import bco_pair


def test_by_hand():
    """r_w = 1, r_l = -1: 0.313262 twice = 0.626523. At 0: 2 log 2."""
    losses = bco_pair(torch.tensor([2.0, 0.0]), torch.tensor([-2.0, 0.0]), beta=0.5)
    torch.testing.assert_close(losses, torch.tensor([0.626523, 2 * math.log(2)]))


@given(st.floats(-50, 50), st.floats(-50, 50))
def test_it_is_binary_cross_entropy(chosen, rejected):
    w, r = (torch.tensor([x], dtype=torch.float64) for x in (chosen, rejected))
    logits, labels = 0.2 * torch.cat([w, r]), torch.tensor([1.0, 0.0], dtype=torch.float64)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="sum")
    torch.testing.assert_close(bco_pair(w, r, beta=0.2).squeeze(), expected)
