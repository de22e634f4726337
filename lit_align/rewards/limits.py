"""Calls that may take only so long, and counts that may become only so large."""

import asyncio
import contextvars
import ctypes
import inspect
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import torch

#: Completions over which failures are counted.
WINDOW = 1000
#: Of so many at least the share is taken, so that one failure at the start stops nothing.
_AT_LEAST = 100


class TimeLimit(Exception):
    """A call took too long."""


class TooManyFailures(RuntimeError):
    """A reward function fails so often that training on what is left would mislead."""


class _Stopped(BaseException):
    """Raised inside a call that has run out of time; no ``except Exception`` of its own holds it up."""


class LimitedCall:
    """A call that runs in a thread of its own from now on.

    Out of time, the thread is told to stop: a loop in Python ends at its next instruction, a call into C
    or the network when it returns. It holds nobody up either way, and ends with the process.

    Args:
        call: what to run; where it gives an awaitable, that is awaited.
        seconds: how long it may take; ``None`` for as long as it likes.
    """

    def __init__(self, call: Callable[[], Any], seconds: float | None) -> None:
        self.seconds = seconds
        self._deadline = None if seconds is None else time.monotonic() + seconds
        self._call = call
        self._value: Any = None
        self._error: BaseException | None = None
        # The device is the thread's own affair; a function that says .cuda() means this process's.
        self._device = torch.cuda.current_device() if torch.cuda.is_initialized() else None
        context = contextvars.copy_context()
        self._thread = threading.Thread(target=context.run, args=(self._run,), daemon=True)
        self._thread.start()

    def result(self) -> Any:
        """What the call gives, waited for.

        Raises:
            TimeLimit: it took too long.
            Exception: what the call raised.
        """
        left = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
        self._thread.join(left)
        if self._thread.is_alive():
            ident = ctypes.c_ulong(self._thread.ident or 0)
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, ctypes.py_object(_Stopped))
            raise TimeLimit(f"took longer than {self.seconds:g} s")
        if self._error is not None:
            raise self._error
        return self._value

    def _run(self) -> None:
        try:
            if self._device is not None:
                torch.cuda.set_device(self._device)
            # Whether gradients are made is the thread's own affair too.
            with torch.no_grad():
                value = self._call()
                self._value = asyncio.run(_wait(value)) if inspect.isawaitable(value) else value
        except _Stopped:
            return
        except BaseException as error:
            self._error = error


async def _wait(value: Any) -> Any:
    return await value


class FailureCount:
    """Failures among the last completions, and the share of them that is too many.

    Args:
        name: of the function.
        most: largest share of failures among the last 1000 completions (``WINDOW``; fewer at the start
            count as 100).
    """

    def __init__(self, name: str, most: float) -> None:
        if not 0 <= most <= 1:
            raise ValueError(f"reward {name!r}: max_failures is a share in [0, 1], not {most}")
        self.name = name
        self.most = most
        self._calls: deque[tuple[int, int]] = deque()

    def add(self, completions: int, failures: int, example: str = "") -> None:
        """Count one call.

        Args:
            completions: that were to be judged.
            failures: of them.
            example: one failure in words, for the error.

        Raises:
            TooManyFailures: the share is exceeded.
        """
        self._calls.append((completions, failures))
        while self.completions - self._calls[0][0] >= WINDOW:
            self._calls.popleft()
        if failures and self.failures > self.most * max(self.completions, _AT_LEAST):
            raise TooManyFailures(
                f"reward {self.name!r} failed for {self.failures} of the last {self.completions} completions,"
                f" more than max_failures allows ({self.most:.0%}). The last: {example}"
            )

    @property
    def completions(self) -> int:
        """Completions in the window."""
        return sum(count for count, _ in self._calls)

    @property
    def failures(self) -> int:
        """Failures among them."""
        return sum(count for _, count in self._calls)

    def state(self) -> list[list[int]]:
        """Plain data for a checkpoint."""
        return [list(one) for one in self._calls]

    def load_state(self, state: list[list[int]]) -> None:
        """Go on counting from what `state` gave."""
        self._calls = deque((completions, failures) for completions, failures in state)
