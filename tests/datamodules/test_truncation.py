from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_align.datamodules.bad_rows import DataError
from lit_align.datamodules.tokenize import Row
from lit_align.datamodules.truncation import Limits, check_lost, truncate


def row(prompt, *completions, weights=None):
    return Row(
        0, list(prompt), [list(c) for c in completions], weights or [[1.0] * len(c) for c in completions], {}
    )


def cut(row, max_length=None, max_prompt_length=None, keep="keep_end", bos=None):
    counts = Counter()
    return truncate(row, Limits(max_length, max_prompt_length, keep, bos), counts), +counts


def test_short_rows_stay():
    one = row([1, 2], [3, 4])
    assert cut(one, max_length=4) == (one, {})
    assert cut(one) == (one, {})


def test_completions_lose_their_end():
    kept, counts = cut(row([1, 2], [3, 4, 5], [6]), max_length=4)
    assert kept.completions == [[3, 4], [6]]
    assert kept.weights == [[1, 1], [1]]
    assert counts == {"truncated_completions": 1}


@pytest.mark.parametrize(
    ("keep", "bos", "left"),
    [("keep_end", None, [3, 4]), ("keep_start", None, [1, 2]), ("keep_end", 1, [1, 4])],
)
def test_prompts_lose_the_end_that_is_not_kept(keep, bos, left):
    kept, counts = cut(row([1, 2, 3, 4], [5]), 100, 2, keep, bos)
    assert kept.prompt == left
    assert counts == {"truncated_prompts": 1}


def test_a_completion_cut_to_nothing_is_lost():
    assert cut(row([1, 2, 3], [4]), max_length=3) == (None, {"lost_to_truncation": 1})
    assert cut(row([1, 2, 3], [4], [5, 6]), max_length=2)[0] is None


def test_a_completion_with_nothing_left_to_learn_is_lost():
    assert cut(row([1], [2, 3, 4], weights=[[0.0, 0.0, 1.0]]), max_length=3)[0] is None


def test_a_pair_that_differs_only_behind_the_cut_is_lost():
    assert cut(row([1], [2, 3], [2, 4]), max_length=2) == (None, {"lost_to_truncation": 1})


def test_more_losses_than_allowed_stop():
    counts = Counter(rows_read=100, lost_to_truncation=2)
    limits = Limits(8, None, "keep_end", None)
    check_lost(counts, "a.jsonl", 0.02, limits, 9)
    with pytest.raises(
        DataError, match=r"a.jsonl: 2 of 100 rows \(2.0%\) .*max_length=8.*longest prompt has 9"
    ):
        check_lost(counts, "a.jsonl", 0.01, limits, 9)


@given(
    prompt=st.lists(st.integers(0, 9), max_size=8),
    completions=st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=8), min_size=1, max_size=3),
    max_length=st.integers(1, 12),
    max_prompt_length=st.integers(1, 11),
    keep=st.sampled_from(["keep_start", "keep_end"]),
)
def test_no_row_is_longer_than_allowed(prompt, completions, max_length, max_prompt_length, keep):
    kept, _ = cut(row(prompt, *completions), max_length, max_prompt_length, keep)
    if kept is None:
        return
    assert len(kept.prompt) <= max_prompt_length
    for ids, weights, before in zip(kept.completions, kept.weights, completions, strict=True):
        assert ids
        assert len(kept.prompt) + len(ids) <= max_length
        assert ids == before[: len(ids)]
        assert len(ids) == len(weights)
