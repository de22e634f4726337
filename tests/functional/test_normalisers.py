"""What a token counts."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_align.functional.normalisers import NORMALISERS, constant

OPTIONS = {name: {"length": 7} if name == "constant" else {} for name in NORMALISERS}
completions = st.lists(st.lists(st.sampled_from([0, 1]), max_size=5), min_size=1, max_size=6)


def flat(lists):
    mask = torch.tensor([float(m) for one in lists for m in one], dtype=torch.float64)
    owner = torch.tensor([i for i, one in enumerate(lists) for _ in one], dtype=torch.long)
    return mask, owner


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("token_mean", (1 + 2 + 6) / 3),
        ("sequence_mean", (1.5 + 6 + 0) / 3),
        ("sequence_sum", (3 + 6 + 0) / 3),
        ("constant", 9 / 21),
    ],
)
def test_by_hand(name, expected):
    """Losses (1, 2 | 6 | masked 9): three tokens, three completions, of which one has no token; L = 7."""
    losses, mask = torch.tensor([1.0, 2.0, 6.0, 9.0]), torch.tensor([1, 1, 1, 0])
    weights, total = NORMALISERS[name](mask, torch.tensor([0, 0, 1, 2]), 3, **OPTIONS[name])
    assert ((losses * weights).sum() / total).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", NORMALISERS)
@settings(max_examples=30)
@given(lists=completions, data=st.data())
def test_the_cut_does_not_matter(name, lists, data):
    """Weights of a part are those of the whole, and totals add up."""
    cut = data.draw(st.integers(0, len(lists)))
    weigh = NORMALISERS[name]
    whole = weigh(*flat(lists), len(lists), **OPTIONS[name])
    parts = [weigh(*flat(part), len(part), **OPTIONS[name]) for part in (lists[:cut], lists[cut:])]
    assert torch.equal(torch.cat([p.weights for p in parts]), whole.weights)
    assert sum(p.total for p in parts) == whole.total


@pytest.mark.parametrize("name", NORMALISERS)
def test_masked_tokens_weigh_nothing(name):
    mask, owner = flat([[1, 0], [0, 0], [1]])
    weights, _ = NORMALISERS[name](mask, owner, 3, **OPTIONS[name])
    assert not weights[mask == 0].any()
    assert torch.isfinite(weights).all()


def test_a_length_must_be_positive():
    with pytest.raises(ValueError, match="length must be positive, got 0"):
        constant(torch.ones(1), torch.zeros(1).long(), 1, length=0)
