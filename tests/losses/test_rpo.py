"""The supervised term beside a preference loss."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_align.losses.rpo import chosen_nll_per_token, chosen_nll_token_mean

pairs = st.lists(st.tuples(st.floats(0, 100), st.integers(1, 30)), min_size=2, max_size=8)


def test_per_token_by_hand():
    """6/3 = 2; a completion of no token costs 0."""
    assert chosen_nll_per_token(torch.tensor([6.0, 0.0]), torch.tensor([3, 0])).tolist() == [2.0, 0.0]


def test_token_mean_by_hand():
    """NLL 6 and 2 over 3 and 1 tokens: 6 · 2/4 = 3 and 2 · 2/4 = 1; their mean 2 is 8 over 4 tokens."""
    assert chosen_nll_token_mean(torch.tensor([6.0, 2.0]), torch.tensor([3, 1])).tolist() == [3.0, 1.0]


def test_nothing_but_empty_completions_costs_nothing():
    assert chosen_nll_token_mean(torch.zeros(2), torch.zeros(2)).tolist() == [0.0, 0.0]


@given(pairs)
def test_the_mean_of_the_scaled_values_is_the_token_mean(rows):
    nll = torch.tensor([row[0] for row in rows], dtype=torch.float64)
    lengths = torch.tensor([row[1] for row in rows])
    torch.testing.assert_close(chosen_nll_token_mean(nll, lengths).mean(), nll.sum() / lengths.sum())


@given(pairs)
def test_per_token_does_not_depend_on_the_cut(rows):
    nll = torch.tensor([row[0] for row in rows], dtype=torch.float64)
    lengths = torch.tensor([row[1] for row in rows])
    whole = chosen_nll_per_token(nll, lengths)
    halves = [chosen_nll_per_token(nll[cut], lengths[cut]) for cut in (slice(None, 1), slice(1, None))]
    assert torch.equal(whole, torch.cat(halves))
