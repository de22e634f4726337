import time

import pytest
import torch

from lit_align.rewards.limits import FailureCount, LimitedCall, TimeLimit, TooManyFailures
from lit_align.runtime import trust


def forever():
    while True:
        pass


def test_a_call_gives_its_value_without_gradients():
    weight = torch.ones((), requires_grad=True)
    assert not LimitedCall(lambda: weight * 2, 10).result().requires_grad


def test_an_awaitable_is_awaited():
    async def later():
        return 5

    assert LimitedCall(later, 10).result() == 5


def test_an_exception_comes_through():
    def fail():
        raise KeyError("x")

    with pytest.raises(KeyError, match="x"):
        LimitedCall(fail, None).result()


def test_an_endless_loop_is_left_and_stopped():
    start = time.monotonic()
    call = LimitedCall(forever, 0.1)
    with pytest.raises(TimeLimit, match=r"longer than 0.1 s"):
        call.result()
    assert time.monotonic() - start < 5
    call._thread.join(10)
    assert not call._thread.is_alive()


def test_a_sleeping_call_is_left():
    with pytest.raises(TimeLimit):
        LimitedCall(lambda: time.sleep(3), 0.05).result()


def test_what_may_be_imported_holds_in_the_thread_too():
    with trust.restricted():
        call = LimitedCall(lambda: trust.check("os.system"), 10)
    with pytest.raises(trust.UntrustedImport):
        call.result()


def test_too_many_failures_stop():
    count = FailureCount("f", 0.1)
    for _ in range(10):
        count.add(8, 1, "row 3: returned nan")
    with pytest.raises(
        TooManyFailures,
        match=r"'f' failed for 11 of the last 88 completions.*10%.*The last: row 3: returned nan",
    ):
        count.add(8, 1, "row 3: returned nan")


def test_few_failures_at_the_start_stop_nothing_but_all_of_a_large_batch_do():
    FailureCount("f", 0.1).add(8, 8)
    with pytest.raises(TooManyFailures):
        FailureCount("f", 0.1).add(16, 16)


def test_old_failures_are_forgotten():
    count = FailureCount("f", 0.1)
    count.add(100, 10)
    for _ in range(10):
        count.add(100, 0)
    assert (count.completions, count.failures) == (1000, 0)


def test_the_count_goes_on_from_its_state():
    first, second = FailureCount("f", 0.1), FailureCount("f", 0.1)
    first.add(50, 5)
    second.load_state(first.state())
    assert (second.completions, second.failures) == (50, 5)


def test_a_share_is_a_share():
    with pytest.raises(ValueError, match=r"max_failures is a share in \[0, 1\], not 3"):
        FailureCount("f", 3)
