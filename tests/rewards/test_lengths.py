import pytest

from lit_align.rewards.lengths import length_target, overlong_penalty


def test_length_target_falls_off_on_both_sides():
    # |n - 8| / 8: 0, 2/8, 8/8, 12/8.
    assert length_target([[1] * n for n in (8, 6, 16, 20, 0)], target=8) == [1.0, 0.75, 0.0, 0.0, 0.0]


def test_overlong_penalty_is_equation_13():
    # L_max 10, L_cache 4: free up to 6, then (6 - n) / 4.
    lengths = (0, 6, 7, 8, 10, 11)
    assert overlong_penalty([[1] * n for n in lengths], max_length=10, buffer=4) == [
        0,
        0,
        -0.25,
        -0.5,
        -1,
        -1,
    ]


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="target is 0"):
        length_target([[1]], target=0)
    with pytest.raises(ValueError, match="buffer is 11"):
        overlong_penalty([[1]], max_length=10, buffer=11)
