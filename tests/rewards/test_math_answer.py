import importlib.util
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from lit_align.rewards import math_answer
from lit_align.rewards.inputs import RewardError
from lit_align.rewards.isolated import Worker


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


class LastDigit:
    """Stands for the verifier, whose package need not be here; slow enough for another thread to come in."""

    def __call__(self, completion: str, answer: str) -> float:
        time.sleep(0.01)
        return float(completion[-1] == answer)


def test_two_calls_at_once_do_not_mix_their_answers(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    worker = Worker("tests.rewards.test_math_answer.LastDigit")
    monkeypatch.setattr(math_answer, "_WORKER", worker)
    right, wrong = (["1"] * 20, ["1"] * 20), (["0"] * 20, ["1"] * 20)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda asked: math_answer.math_answer(*asked), [right, wrong, right, wrong]))
    worker.stop()
    assert found == [[1.0] * 20, [0.0] * 20, [1.0] * 20, [0.0] * 20]
