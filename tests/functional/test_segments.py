"""Sums, means and positions over the pieces of a flat batch."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_align.functional.segments import segment_mean, segment_positions, segment_sum

pieces = st.lists(
    st.lists(st.tuples(st.floats(-9, 9), st.sampled_from([0.0, 0.5, 1.0])), max_size=5),
    min_size=1,
    max_size=5,
)


def flat(lists):
    values = torch.tensor([v for piece in lists for v, _ in piece], dtype=torch.float64)
    weights = torch.tensor([w for piece in lists for _, w in piece])
    owner = torch.tensor([i for i, piece in enumerate(lists) for _ in piece], dtype=torch.long)
    return values, weights, owner


def test_by_hand():
    """Pieces (1, 2), (), (4): sums 3, 0, 4; means with weights (1, 0), (), (½): 1, 0, 4."""
    values, owner = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0, 0, 2])
    assert segment_sum(values, owner, 3).tolist() == [3.0, 0.0, 4.0]
    assert segment_mean(values, torch.tensor([1.0, 0.0, 0.5]), owner, 3).tolist() == [1.0, 0.0, 4.0]


@given(pieces)
def test_against_python(lists):
    values, weights, owner = flat(lists)
    sums = [sum(v for v, _ in piece) for piece in lists]
    means = [
        sum(v * w for v, w in piece) / sum(w for _, w in piece) if sum(w for _, w in piece) else 0.0
        for piece in lists
    ]
    torch.testing.assert_close(
        segment_sum(values, owner, len(lists)), torch.tensor(sums, dtype=torch.float64)
    )
    torch.testing.assert_close(
        segment_mean(values, weights, owner, len(lists)), torch.tensor(means, dtype=torch.float64)
    )


@given(pieces)
def test_positions_against_python(lists):
    _, weights, owner = flat(lists)
    expected = [sum(1 for _, w in piece[:i] if w) for piece in lists for i in range(len(piece))]
    assert segment_positions(weights > 0, owner, len(lists)).tolist() == expected


def test_gradients():
    values = torch.randn(4, dtype=torch.float64, requires_grad=True)
    owner, weights = torch.tensor([0, 0, 2, 2]), torch.tensor([1.0, 0.5, 1.0, 0.0])
    assert torch.autograd.gradcheck(lambda x: segment_sum(x, owner, 3), values)
    assert torch.autograd.gradcheck(lambda x: segment_mean(x, weights, owner, 3), values)
