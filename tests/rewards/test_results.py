import numpy as np
import pytest
import torch

from lit_align.rewards.inputs import RewardError
from lit_align.rewards.results import joined, judgement


@pytest.mark.parametrize(
    "raw",
    [
        [1, 0.5],
        (True, 0.5),
        torch.tensor([1.0, 0.5], dtype=torch.bfloat16),
        torch.tensor([[1.0], [0.5]]),
        np.array([1.0, 0.5]),
        [torch.tensor(1.0), np.float64(0.5)],
    ],
)
def test_numbers_in_all_their_forms(inputs, raw):
    made = judgement(raw, inputs(["a", "b"]), "f")
    assert made.rewards.tolist() == [1.0, 0.5]
    assert made.rewards.dtype is torch.float32
    assert (made.tokens, made.failures) == (None, [])


def test_none_nan_and_infinity_are_masked_and_named(inputs):
    raw = [None, float("nan"), float("inf"), -float("inf"), 2]
    made = judgement(raw, inputs(["a"] * 5), "f")
    assert made.rewards.isnan().tolist() == [True, True, True, True, False]
    assert [(f.where, f.problem) for f in made.failures] == [
        ("row 10 ('prompt 0')", "returned None"),
        ("row 11 ('prompt 1')", "returned nan"),
        ("row 12 ('prompt 2')", "returned inf"),
        ("row 13 ('prompt 3')", "returned -inf"),
    ]


def test_none_may_be_no_failure(inputs):
    made = judgement([None, float("nan")], inputs(["a", "b"]), "f", none_is_failure=False)
    assert made.rewards.isnan().all()
    assert [f.problem for f in made.failures] == ["returned nan"]


def test_rewards_of_tokens_are_kept_and_summed(inputs):
    raw = [[0.25, 0.5], torch.tensor([1.0, 2.0, 3.0]), [1.0, None], None]
    made = judgement(raw, inputs(["a b", "a b c", "a b", "a"]), "f")
    assert made.rewards[:2].tolist() == [0.75, 6.0]
    assert made.rewards[2:].isnan().all()
    assert made.tokens[1].tolist() == [1.0, 2.0, 3.0]
    assert made.tokens[2:] == [None, None]
    assert len(made.failures) == 2


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        ([1.0], "returned 1 rewards for 2 completions"),
        (torch.zeros(2, 3), "returned 3 rewards of tokens for a completion of 2 tokens"),
        (1.0, "returned float"),
        (None, "returned NoneType"),
        ("ab", "returned str"),
        (["1", 2], "returned '1' among its rewards"),
        ([[1.0, 2.0], 1.0], "numbers for some completions and rewards of tokens for others"),
        ([["x", "y"], None], "each is a number"),
    ],
)
def test_anything_else_is_an_error(inputs, raw, told):
    with pytest.raises(RewardError, match=told):
        judgement(raw, inputs(["a b", "c d"]), "f")


def test_parts_are_joined_in_their_places(inputs):
    first = judgement([[1.0], None], inputs(["a", "b"]), "f")
    second = judgement([[3.0]], inputs(["c"]), "f")
    made = joined([([2, 0], first), ([1], second)], 3)
    assert made.rewards[1:].tolist() == [3.0, 1.0]
    assert made.rewards[0].isnan()
    assert [t if t is None else t.tolist() for t in made.tokens] == [None, [3.0], [1.0]]
    assert len(made.failures) == 1
