import asyncio
import logging
import time

import pytest
import torch

from lit_align.rewards.answers import exact_match
from lit_align.rewards.function import RewardFunction
from lit_align.rewards.inputs import RewardError
from lit_align.rewards.isolated import Worker
from lit_align.rewards.limits import TooManyFailures


def lengths(completions):
    return [float(len(text)) for text in completions]


def test_a_function_judges(inputs):
    made = RewardFunction(lengths, "lengths")(inputs(["a", "bcd"]))
    assert made.rewards.tolist() == [1.0, 3.0]


def test_an_exception_costs_the_prompt_that_raises_it(inputs, caplog):
    def picky(completions):
        if "bad" in completions:
            raise ValueError("cannot read 'bad'")
        return lengths(completions)

    with caplog.at_level(logging.WARNING):
        made = RewardFunction(picky, "picky")(inputs(["a", "b", "bad", "c", "dd", "e"], group=2))
    assert made.rewards.isnan().tolist() == [False, False, True, True, False, False]
    assert made.rewards[4] == 2.0
    assert [f.where for f in made.failures] == ["row 11 ('prompt 1')"] * 2
    assert "reward 'picky', row 11 ('prompt 1'): raised ValueError: cannot read 'bad'" in caplog.messages


def test_a_function_that_never_works_masks_everything(inputs):
    def broken(completions):
        return 1 / 0

    made = RewardFunction(broken, "broken")(inputs(["a", "b"]))
    assert made.rewards.isnan().all()
    assert {f.problem for f in made.failures} == {"raised ZeroDivisionError: division by zero"}


def test_out_of_time_everything_is_masked(inputs):
    start = time.monotonic()
    made = RewardFunction(lambda completions: time.sleep(3), "slow", timeout=0.1)(inputs(["a", "b"]))
    assert time.monotonic() - start < 2
    assert {f.problem for f in made.failures} == {"took longer than 0.1 s"}


def test_asking_again_stays_within_the_time_of_the_call(inputs):
    def slow_to_fail(completions):
        time.sleep(0.15)
        raise ValueError("no")

    start = time.monotonic()
    made = RewardFunction(slow_to_fail, "slow", timeout=0.4, max_failures=1.0)(inputs(["a"] * 20))
    assert time.monotonic() - start < 2
    assert len(made.failures) == 20


def test_failures_past_the_share_stop_the_run(inputs):
    function = RewardFunction(lambda completions: [None] * len(completions), "mute")
    function(inputs(["a"] * 8))
    with pytest.raises(TooManyFailures, match=r"'mute' failed for 16 of the last 16.*returned None"):
        function(inputs(["a"] * 8))


def test_none_may_be_allowed(inputs):
    function = RewardFunction(lambda completions: [None] * len(completions), "mute", allow_none=True)
    for _ in range(5):
        assert function(inputs(["a"] * 8)).failures == []


def test_what_is_wrong_for_every_prompt_is_an_error_and_no_mask(inputs):
    with pytest.raises(RewardError, match="asks for 'answer'"):
        RewardFunction(lambda completions, answer: [], "f")(inputs(["a"]))
    with pytest.raises(RewardError, match="returned 0 rewards for 1"):
        RewardFunction(lambda completions: [], "f")(inputs(["a"]))


def test_failures_are_told_a_limited_number_of_times(inputs, caplog):
    function = RewardFunction(lambda completions: [None] * len(completions), "mute", max_failures=1.0)
    with caplog.at_level(logging.WARNING):
        for _ in range(30):
            function(inputs(["a"] * 5))
    assert len(caplog.messages) == 20
    assert caplog.messages[-1].endswith("; further ones are only counted")


def test_async_functions_run_at_the_same_time(inputs):
    async def wait(completions):
        await asyncio.sleep(0.4)
        return lengths(completions)

    functions = [RewardFunction(wait, f"wait{i}") for i in range(5)]
    assert all(f.waits for f in functions)
    start = time.monotonic()
    calls = [f.start(inputs(["abc"])) for f in functions]
    assert [c.result().rewards.tolist() for c in calls] == [[3.0]] * 5
    assert time.monotonic() - start < 1.5


def test_an_async_callable_object_waits_and_a_plain_function_does_not():
    class Judge:
        async def __call__(self, completions):
            return lengths(completions)

    assert RewardFunction(Judge(), "judge").waits
    assert not RewardFunction(lengths, "lengths").waits


def test_numbers_to_report(inputs):
    def reward(completions, log_metric):
        log_metric("accuracy", 0.25)
        return lengths(completions)

    assert RewardFunction(reward, "reward")(inputs(["a"])).reported == {"accuracy": [0.25]}


def test_a_function_written_for_trl(inputs):
    def format_reward(prompts, completions, completion_ids, answer, trainer_state, **kwargs):
        assert kwargs["prompt"]
        return [
            1.0 if c[0]["content"] == a and trainer_state.global_step == 3 else 0.0
            for c, a in zip(completions, answer, strict=True)
        ]

    made = inputs(["a", "b"], answer=["a", "a"])
    made.prompts[:] = [[{"role": "user", "content": "?"}]] * 2
    assert RewardFunction(format_reward, "f", messages=True)(made).rewards.tolist() == [1.0, 0.0]


def test_state_of_the_function_and_of_its_failures(inputs):
    class Counting:
        def __init__(self):
            self.calls = 0

        def __call__(self, completions):
            self.calls += 1
            return [None] * len(completions)

        def state_dict(self):
            return {"calls": self.calls}

        def load_state_dict(self, state):
            self.calls = state["calls"]

    first, second = RewardFunction(Counting(), "c"), RewardFunction(Counting(), "c")
    first(inputs(["a", "b"]))
    second.load_state(first.state())
    assert first.state() == second.state() == {"failures": [[2, 2]], "own": {"calls": 1}}


def test_state_is_that_of_its_moment(inputs):
    """A window of several rollouts takes it at its start, and saves it later."""

    class Counting:
        def __init__(self):
            self.kept = {}

        def __call__(self, completions):
            self.kept["calls"] = self.kept.get("calls", 0) + 1
            return [0.0] * len(completions)

        def state_dict(self):
            return self.kept

        def load_state_dict(self, state):
            self.kept = state

    function = RewardFunction(Counting(), "f")
    before = function.state()
    function(inputs(["a"]))
    assert before["own"] == {}


def test_a_module_keeps_its_weights_to_itself():
    assert RewardFunction(torch.nn.Linear(2, 2), "m").state() == {"failures": []}


def test_a_timeout_is_positive():
    with pytest.raises(ValueError, match="timeout is 0"):
        RewardFunction(lengths, "f", timeout=0)


def test_in_a_process_of_its_own(inputs):
    worker = Worker("lit_align.rewards.answers.exact_match")
    function = RewardFunction(exact_match, "exact", worker=worker)
    assert function.waits
    assert function(inputs(["a", "b"], answer=["a", "a"])).rewards.tolist() == [1.0, 0.0]
    worker.stop()
