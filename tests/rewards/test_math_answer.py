import importlib.util

import pytest

from lit_align.rewards import math_answer
from lit_align.rewards.inputs import RewardError


def test_without_the_package_the_error_names_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RewardError, match=r"pip install 'lit-align\[math\]'"):
        math_answer.math_answer(["1"], ["1"])


def test_equal_in_mathematics():
    pytest.importorskip("math_verify", reason="math-verify is not installed")
    said = [r"so $\frac{1}{2}$", "The answer is $0.5$", r"\boxed{2}", "nothing"]
    assert math_answer.math_answer(said, ["1/2", r"\frac{1}{2}", "3", "1"]) == [1.0, 1.0, 0.0, 0.0]


def test_a_verification_out_of_time_has_no_reward_and_the_next_one_has():
    pytest.importorskip("math_verify", reason="math-verify is not installed")
    tower = "$" + "9^{" * 12 + "9" + "}" * 12 + "$"
    rewards = math_answer.math_answer([tower, "$1$"], ["1", "1"], seconds=2.0)
    assert rewards == [None, 1.0]
