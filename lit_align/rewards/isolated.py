"""A function in a process of its own, which is killed when it is out of time."""

import contextlib
import json
import queue
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping
from typing import Any

from lit_align.rewards.inputs import RewardError
from lit_align.rewards.limits import TimeLimit

#: Seconds in which the process has to have imported the function.
_START = 120.0


class RaisedThere(Exception):
    """What a function raised in its process, in words; or that the process died."""


class IsolatedCall:
    """A call at work in its process.

    Args:
        worker: that works on it.
        number: of the call.
        seconds: how long it may take; ``None`` for as long as it likes.
    """

    def __init__(self, worker: "Worker", number: int, seconds: float | None) -> None:
        self.worker, self.number, self.seconds = worker, number, seconds
        self._deadline = None if seconds is None else time.monotonic() + seconds

    def result(self) -> Any:
        """What the call gives, waited for.

        Raises:
            TimeLimit: it took too long; the process has been killed.
            RaisedThere: the function raised an exception, or the process died.
        """
        left = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
        try:
            return self.worker.answer(self.number, left)
        except TimeLimit:
            raise TimeLimit(f"took longer than {self.seconds:g} s") from None


class Worker:
    """One process for one function, begun at the first call and begun anew after it was killed or died.

    Args:
        path: dotted path of the function; what it is called with and returns must have a form in JSON.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._process: subprocess.Popen[str] | None = None
        self._answers: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._number = 0
        self._pending = False
        self._turn = threading.Lock()

    def __reduce__(self) -> tuple[type["Worker"], tuple[str]]:
        # A copy of it (an averaged module holds one) begins a process of its own.
        return Worker, (self.path,)

    def call(self, arguments: Mapping[str, Any], seconds: float | None) -> Any:
        """What a call gives, waited for. Threads that call at once take turns.

        Args:
            arguments: see :meth:`start`.
            seconds: see :meth:`start`; waiting for a turn is not counted.

        Raises:
            TimeLimit: it took too long; the process has been killed.
            RaisedThere: the function raised an exception, or the process died.
        """
        with self._turn:
            return self.start(arguments, seconds).result()

    def start(self, arguments: Mapping[str, Any], seconds: float | None) -> IsolatedCall:
        """Begin a call, for one thread at a time: the call before must have been waited for, or it is killed.

        Args:
            arguments: keyword arguments; those that have no form in JSON stay behind.
            seconds: how long it may take, the start of the process not counted.

        Raises:
            RewardError: the function cannot be imported there.
        """
        if self._pending:
            # Nobody waited for the call before, so the process may never get to this one.
            self.stop()
        if self._process is None or self._process.poll() is not None:
            self._begin()
        sent = {key: value for key, value in arguments.items() if _has_json(value)}
        return IsolatedCall(self, self._send({"arguments": sent}), seconds)

    def answer(self, number: int, seconds: float | None) -> Any:
        """Wait for the answer to a call."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while True:
            try:
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                found = self._answers.get(timeout=left)
            except queue.Empty:
                self.stop()
                raise TimeLimit("took too long") from None
            if found["id"] == number or "died" in found:
                break
        self._pending = False
        if "died" in found:
            self.stop()
            raise RaisedThere(found["died"])
        if "error" in found:
            raise RaisedThere(found["error"])
        return found["result"]

    def stop(self) -> None:
        """Kill the process, if there is one."""
        if self._process is not None:
            self._finalizer()
            self._process = None
        self._pending = False

    def _begin(self) -> None:
        process = subprocess.Popen(
            [sys.executable, "-m", "lit_align.rewards.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        self._process = process
        self._finalizer = weakref.finalize(self, _end, process)
        # A queue of its own: what a killed process still said belongs to nobody.
        self._answers = queue.SimpleQueue()
        threading.Thread(target=_read, args=(process, self._answers), daemon=True).start()
        number = self._send({"path": self.path, "sys_path": sys.path})
        try:
            self.answer(number, _START)
        except (RaisedThere, TimeLimit) as error:
            self.stop()
            raise RewardError(
                f"reward function {self.path!r} cannot be imported in a process: {error}"
            ) from error

    def _send(self, request: dict[str, Any]) -> int:
        assert self._process is not None
        assert self._process.stdin is not None
        self._number += 1
        self._pending = True
        try:
            self._process.stdin.write(json.dumps({"id": self._number, **request}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            # It died between two calls; the reader says so, and the answer to this call will be that.
            self._answers.put({"id": self._number, "died": "the process of the function has died"})
        return self._number


def _read(process: "subprocess.Popen[str]", answers: "queue.SimpleQueue[dict[str, Any]]") -> None:
    assert process.stdout is not None
    for line in process.stdout:
        answers.put(json.loads(line))
    process.stdout.close()
    code = process.wait()
    answers.put({"id": 0, "died": f"the process of the function ended (exit status {code})"})


def _end(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.wait()
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        # What was not sent is sent in vain here.
        process.stdin.close()


def _has_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True
