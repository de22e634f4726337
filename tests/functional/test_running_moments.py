"""Mean and deviation of all scores seen so far."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_align.functional.running_moments import RunningMoments, normalise_scores, scale_scores
from lit_align.functional.whitening import moments


def show(running, values):
    values = torch.tensor(values, dtype=torch.float64)
    running.update(moments(values, torch.ones_like(values)))


def test_by_hand():
    """1, 3, then 8: mean 4, deviations 9 + 1 + 16 = 26, std √13."""
    running = RunningMoments()
    show(running, [1.0, 3.0])
    show(running, [8.0])
    assert (running.count, running.mean) == (3.0, 4.0)
    assert running.std == pytest.approx(13**0.5, rel=1e-14)


@given(st.lists(st.lists(st.floats(-100, 100), max_size=5), min_size=1, max_size=5))
def test_the_cut_into_batches_does_not_matter(batches):
    one, many = RunningMoments(), RunningMoments()
    show(one, [x for batch in batches for x in batch])
    for batch in batches:
        show(many, batch)
    assert many.count == one.count
    assert many.mean == pytest.approx(one.mean, abs=1e-9)
    assert many.std == pytest.approx(one.std, abs=1e-5)


def test_scores():
    """Mean 4 and deviation √13 of 1, 3, 8."""
    running = RunningMoments()
    show(running, [1.0, 3.0, 8.0])
    root = 13**0.5
    scores = torch.tensor([4.0, 4.0 + root])
    torch.testing.assert_close(normalise_scores(scores, running), torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(scale_scores(scores, running), scores / root)


@pytest.mark.parametrize("seen", [[], [2.0], [2.0, 2.0]])
def test_there_is_no_scale_before_two_different_scores(seen):
    running = RunningMoments()
    show(running, seen)
    scores = torch.tensor([2.0, 5.0])
    assert scale_scores(scores, running).tolist() == [2.0, 5.0]
    assert normalise_scores(scores, running).tolist() == [2.0 - running.mean, 5.0 - running.mean]


def test_state_is_floats_and_comes_back():
    running = RunningMoments()
    show(running, [1.0, 3.0])
    state = running.state_dict()
    assert all(type(value) is float for value in state.values())
    again = RunningMoments()
    again.load_state_dict(state)
    show(running, [7.0])
    show(again, [7.0])
    assert again == running
