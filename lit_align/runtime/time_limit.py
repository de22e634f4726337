"""Calls in this thread that may take only so long, at the cost of two entries in a dictionary.

For somebody else's program in an interpreter of Python (a template), called once per row: a thread or a
process for each call would cost more than the call. One thread looks at the clock for all of them, and
raises an exception in the one that is late.
"""

import ctypes
import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

#: Seconds between two looks at the clock, by which a call may be late.
_EVERY = 0.2
#: Seconds after which an exception that is on its way has arrived, or never will.
_ARRIVAL = 1.0

_deadlines: dict[object, tuple[int, float]] = {}
_watcher: threading.Thread | None = None


class OutOfTime(Exception):
    """A call took too long."""


class _Stopped(BaseException):
    """Raised inside a call that is late; no ``except Exception`` of its own holds it up."""


def within(seconds: float, call: Callable[[], T]) -> T:
    """Call, and end it where it takes longer.

    A loop in Python ends at its next instruction; one operation in C (the power of two large numbers) is
    waited for.

    Args:
        seconds: how long it may take.
        call: without arguments.

    Raises:
        OutOfTime: it took too long.
        Exception: what the call raised.
    """
    token = object()
    failure: BaseException | None = None
    try:
        _deadlines[token] = (threading.get_ident(), time.monotonic() + seconds)
        _watch()
        try:
            value = call()
        except _Stopped:
            raise
        except BaseException as error:
            failure = error
        # Whoever takes the entry out decides: both take it in one instruction.
        if _deadlines.pop(token, None) is None:
            _await_exception()
            raise _Stopped
    except _Stopped:
        raise OutOfTime(f"took longer than {seconds:g} s") from None
    if failure is not None:
        raise failure
    return value


def _await_exception() -> None:
    # It may have come where exceptions go no further (__del__, the callback of a weak reference).
    until = time.monotonic() + _ARRIVAL
    while time.monotonic() < until:
        time.sleep(0.001)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(threading.get_ident()), None)


def _watch() -> None:
    global _watcher
    # A forked process has none, and finds that the one it knows of is not alive.
    if _watcher is None or not _watcher.is_alive():
        _watcher = threading.Thread(target=_look, name="time limits", daemon=True)
        _watcher.start()


def _look() -> None:
    while True:
        time.sleep(_EVERY)
        now = time.monotonic()
        for token, (ident, deadline) in list(_deadlines.items()):
            if now > deadline and _deadlines.pop(token, None) is not None:
                stopped = ctypes.py_object(_Stopped)
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), stopped)
