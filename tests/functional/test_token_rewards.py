"""The reward of each token."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_align.functional.token_rewards import (
    clip_scores,
    last_tokens,
    penalise_missing_eos,
    token_rewards,
)


def test_by_hand():
    """β = ½. KL (2, 4 | 6), scores 10 and 20: -1, 10 - 2, and 20 - 3; the masked token gets nothing."""
    kl = torch.tensor([2.0, 4.0, 99.0, 6.0])
    mask, owner = torch.tensor([1, 1, 0, 1]), torch.tensor([0, 0, 0, 1])
    found = token_rewards(torch.tensor([10.0, 20.0]), kl, mask, owner, kl_coefficient=0.5)
    assert found.tolist() == [-1.0, 8.0, 0.0, 17.0]


def test_no_penalty_without_beta():
    found = token_rewards(
        torch.ones(1), torch.ones(3), torch.ones(3), torch.zeros(3).long(), kl_coefficient=0.0
    )
    assert found.tolist() == [0.0, 0.0, 1.0]


def test_a_completion_without_a_token_has_no_place_for_its_score():
    owner = torch.tensor([0, 2])
    found = token_rewards(
        torch.tensor([1.0, 5.0, 2.0]), torch.zeros(2), torch.ones(2), owner, kl_coefficient=1.0
    )
    assert found.tolist() == [1.0, 2.0]


def test_an_unscored_completion_does_not_touch_the_others():
    scores = torch.tensor([float("nan"), 2.0])
    found = token_rewards(scores, torch.zeros(2), torch.ones(2), torch.tensor([0, 1]), kl_coefficient=1.0)
    assert found.isnan().tolist() == [True, False]
    masked = token_rewards(
        scores, torch.zeros(2), torch.tensor([0, 1]), torch.tensor([0, 1]), kl_coefficient=1.0
    )
    assert masked.tolist() == [0.0, 2.0]


@given(st.lists(st.lists(st.sampled_from([0, 1]), max_size=6), min_size=1, max_size=5))
def test_last_tokens_against_python(lists):
    mask = torch.tensor([m for one in lists for m in one])
    owner = torch.tensor([i for i, one in enumerate(lists) for _ in one], dtype=torch.long)
    expected = [m == 1 and not any(one[i + 1 :]) for one in lists for i, m in enumerate(one)]
    assert last_tokens(mask, owner, len(lists)).tolist() == expected


def test_missing_eos():
    scores, finished = torch.tensor([1.0, 1.0]), torch.tensor([True, False])
    assert penalise_missing_eos(scores, finished, penalty=3.0).tolist() == [1.0, -2.0]


def test_clipped_scores():
    found = clip_scores(torch.tensor([-5.0, 0.5, float("nan")]), limit=1.0)
    assert found[:2].tolist() == [-1.0, 0.5]
    assert found[2].isnan()
    with pytest.raises(ValueError, match="limit must be positive, got 0"):
        clip_scores(torch.ones(1), limit=0)
