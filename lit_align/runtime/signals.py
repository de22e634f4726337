"""Signals that ask a run to stop, remembered until it can."""

import os
import signal
import threading
from types import FrameType
from typing import Any


class StopSignals:
    """Note SIGTERM and SIGINT instead of dying of them.

    The handlers do nothing but set a flag: a handler runs between any two instructions, where neither a
    save nor a collective is safe. A second SIGINT interrupts at once, as it would have without this.

    Attributes:
        received: the signal that came (the first, or the one that asks for more than to stop), ``None``
            before.
        requeue: a further signal to note, by which a scheduler announces that time is over.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.requeue: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def install(self, requeue: signal.Signals | None = None) -> None:
        """Take over, where that is possible: only the main thread may."""
        self.received, self.requeue = None, requeue
        if threading.current_thread() is threading.main_thread() and not self._before:
            wanted = (*self.SIGNALS, *([requeue] if requeue is not None else []))
            self._before = {one: signal.signal(one, self._note) for one in wanted}

    def restore(self) -> None:
        """Give the signals back to whoever had them."""
        for one, handler in self._before.items():
            # None is a handler that was not installed from Python, and cannot be put back from it.
            signal.signal(one, signal.SIG_DFL if handler is None else handler)
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.received is None or number == self.requeue:
            self.received = signal.Signals(number)
        # Not print or logging: their locks may be held by what was interrupted.
        text = f"\n{self.received.name}: saving at the next optimiser step, then stopping\n"
        os.write(2, text.encode())
