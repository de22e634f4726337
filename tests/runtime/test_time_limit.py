import sys
import threading
import time

import pytest

from lit_align.runtime import time_limit
from lit_align.runtime.time_limit import OutOfTime, within


def forever() -> None:
    while True:
        pass


def stubborn() -> None:
    while True:
        try:
            forever()
        except Exception:
            continue


@pytest.mark.parametrize("call", [forever, stubborn])
def test_a_loop_is_stopped(call):
    begin = time.monotonic()
    with pytest.raises(OutOfTime, match=r"took longer than 0\.2 s"):
        within(0.2, call)
    assert time.monotonic() - begin < 5
    # Nothing of it reaches what comes after.
    assert [within(5, lambda i=i: i) for i in range(1000)] == list(range(1000))
    assert not time_limit._deadlines


def test_values_and_errors_come_through():
    assert within(5, lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        within(5, lambda: 1 / 0)
    with pytest.raises(KeyboardInterrupt):
        within(5, interrupted)
    assert not time_limit._deadlines


def interrupted() -> None:
    raise KeyboardInterrupt


def test_calls_around_their_limit_end_one_way_or_the_other(monkeypatch):
    """The exception never arrives after the call, however closely it ends."""
    monkeypatch.setattr(time_limit, "_EVERY", 0.001)
    monkeypatch.setattr(time_limit, "_watcher", None)
    found = set()
    for i in range(150):
        until = time.monotonic() + 0.0005 * (i % 10)
        try:
            found.add(within(0.002, lambda until=until: busy(until)))
        except OutOfTime:
            found.add("late")
    time.sleep(0.05)
    assert found == {"done", "late"}
    assert not time_limit._deadlines


def busy(until: float) -> str:
    while time.monotonic() < until:
        pass
    return "done"


def test_threads_have_limits_of_their_own():
    found: dict[int, str] = {}

    def run(number: int, seconds: float) -> None:
        try:
            within(seconds, lambda: time.sleep(0.01) or busy(time.monotonic() + 0.8))
            found[number] = "done"
        except OutOfTime:
            found[number] = "late"

    threads = [threading.Thread(target=run, args=(n, s)) for n, s in enumerate([0.1, 30, 0.1, 30])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {0: "late", 1: "done", 2: "late", 3: "done"}


class Swallows:
    def __del__(self) -> None:
        busy(time.monotonic() + 3)


def test_an_exception_that_is_swallowed_is_raised_again(monkeypatch):
    """In ``__del__`` an exception goes no further: the call ends as if it had never been late."""
    seen = []
    monkeypatch.setattr(sys, "unraisablehook", lambda found: seen.append(found.exc_type))

    def call() -> str:
        made = Swallows()
        del made
        return "done"

    outcome = []

    def run() -> None:
        try:
            outcome.append(within(0.1, call))
        except OutOfTime:
            outcome.append("late")

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(10)
    assert outcome == ["late"]
    assert seen == [time_limit._Stopped]
    assert not time_limit._deadlines
