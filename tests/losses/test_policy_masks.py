"""Which tokens a policy loss leaves out."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_align.losses.policy_masks import entropy_threshold, high_entropy_mask, off_policy_mask

OWNER = torch.tensor([0, 0, 1, 2])


def test_off_policy_by_hand():
    """Drifts of 1 (bad), 1 (good), ½ (bad), δ = ¾: the first completion goes."""
    old = torch.zeros(4)
    logps = torch.tensor([-2.0, 0.0, -1.0, -0.5])
    advantages = torch.tensor([-1.0, -1.0, 1.0, -1.0])
    found = off_policy_mask(logps, old, advantages, torch.ones(4), OWNER, 3, threshold=0.75)
    assert found.tolist() == [False, False, True, True]


def test_drift_is_that_of_the_tokens_that_count():
    logps, advantages = torch.tensor([-2.0, -torch.inf, 0.0, 0.0]), -torch.ones(4)
    given_mask = torch.tensor([1, 0, 1, 1])
    found = off_policy_mask(logps, torch.zeros(4), advantages, given_mask, OWNER, 3, threshold=3.0)
    assert found.all()


def test_a_policy_that_likes_its_samples_more_is_not_off():
    found = off_policy_mask(
        torch.zeros(4), -torch.ones(4), -torch.ones(4), torch.ones(4), OWNER, 3, threshold=0.0
    )
    assert found.all()


def test_entropy_by_hand():
    """Of 1, 2, 3, 4 the top half: the median is 2½. The masked 99 is in neither."""
    entropies, mask = torch.tensor([1.0, 99.0, 4.0, 3.0, 2.0]), torch.tensor([1, 0, 1, 1, 1])
    threshold = entropy_threshold(entropies, mask, top=0.5)
    assert threshold.item() == 2.5
    assert high_entropy_mask(entropies, mask, threshold).tolist() == [False, False, True, True, False]


def test_all_of_them():
    entropies, mask = torch.rand(9), torch.ones(9)
    assert high_entropy_mask(entropies, mask, entropy_threshold(entropies, mask, top=1.0)).all()


@given(st.lists(st.floats(0, 5), min_size=1, max_size=20), st.floats(0.01, 1))
def test_threshold_is_the_quantile(values, top):
    entropies = torch.tensor(values, dtype=torch.float64)
    found = entropy_threshold(entropies, torch.ones(len(values)), top=top)
    torch.testing.assert_close(found, torch.quantile(entropies, 1 - top), rtol=1e-9, atol=1e-9)


def test_nothing_counts():
    entropies, mask = torch.ones(2), torch.zeros(2)
    threshold = entropy_threshold(entropies, mask, top=0.2)
    assert threshold == torch.inf
    assert not high_entropy_mask(entropies, mask, threshold).any()


@pytest.mark.parametrize("top", [0.0, 1.5])
def test_a_share_is_a_share(top):
    with pytest.raises(ValueError, match="top must be above 0 and at most 1"):
        entropy_threshold(torch.ones(2), torch.ones(2), top=top)
