"""One reward function with its limits: called safely, its failures named, masked and counted."""

import copy
import inspect
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lit_align.rewards.inputs import RewardError, RewardInputs, arguments_for
from lit_align.rewards.isolated import IsolatedCall, RaisedThere, Worker
from lit_align.rewards.limits import FailureCount, LimitedCall, TimeLimit
from lit_align.rewards.results import Judgement, all_failed, joined, judgement

logger = logging.getLogger(__name__)

#: Failures that are told one by one, of a call and altogether; all are counted.
_TOLD_OF_CALL, _TOLD = 3, 20


class RewardFunction:
    """A reward function as it is called.

    Args:
        function: any callable, sync or async; see `lit_align.rewards.inputs.arguments_for`.
        name: in metrics and messages.
        options: arguments fixed by the user.
        timeout: seconds that a call may take; ``None`` for no limit.
        max_failures: share of the last 1000 completions that may be left without a reward by an exception,
            the time limit, ``None``, NaN or infinity; more stops the run.
        allow_none: ``None`` means that the function has nothing to say of a completion, and is no failure.
        messages: give completions to conversations as messages, as TRL does.
        worker: the process to call it in, where it is to have one of its own.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        name: str,
        options: Mapping[str, Any] | None = None,
        timeout: float | None = 60.0,
        max_failures: float = 0.1,
        allow_none: bool = False,
        messages: bool = False,
        worker: Worker | None = None,
    ) -> None:
        if timeout is not None and timeout <= 0:
            raise ValueError(
                f"reward {name!r}: timeout is {timeout}; it is a number of seconds, or null for none"
            )
        self.function = function
        self.name = name
        self.options = dict(options or {})
        self.timeout = timeout
        self.allow_none = allow_none
        self.messages = messages
        self.worker = worker
        self.count = FailureCount(name, max_failures)
        self._told = 0

    @property
    def waits(self) -> bool:
        """Whether others may run while it is at work: it is async, or in a process of its own."""
        call = getattr(self.function, "__call__", None)  # noqa: B004 (to look at it, not to ask for it)
        inner = getattr(self.function, "func", self.function)
        awaited = inspect.iscoroutinefunction(inner) or inspect.iscoroutinefunction(call)
        return awaited or self.worker is not None

    def start(self, inputs: RewardInputs) -> "StartedCall":
        """Begin to judge a batch.

        Raises:
            RewardError: the function asks for what there is not.
        """
        return StartedCall(self, inputs)

    def __call__(self, inputs: RewardInputs) -> Judgement:
        """Judge a batch.

        Raises:
            RewardError: arguments or result do not fit.
            TooManyFailures: of the last completions too many have no reward.
        """
        return self.start(inputs).result()

    def settle(self, made: Judgement) -> Judgement:
        """Tell and count the failures of a call."""
        for failure in made.failures[:_TOLD_OF_CALL]:
            if self._told < _TOLD:
                self._told += 1
                last = "; further ones are only counted" if self._told == _TOLD else ""
                logger.warning("reward %r, %s: %s%s", self.name, failure.where, failure.problem, last)
        last_one = f"{made.failures[-1].where}: {made.failures[-1].problem}" if made.failures else ""
        self.count.add(len(made.rewards), len(made.failures), last_one)
        return made

    def state(self) -> dict[str, Any]:
        """Plain data for a checkpoint: recent failures, and what the function itself wants to keep."""
        own = getattr(self.function, "state_dict", None)
        keeps = callable(own) and not hasattr(self.function, "forward")
        return {
            "failures": self.count.state(),
            **({"own": copy.deepcopy(own())} if keeps and own is not None else {}),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take up what `state` gave."""
        self.count.load_state(state["failures"])
        if "own" in state:
            self.function.load_state_dict(state["own"])  # type: ignore[attr-defined]


class StartedCall:
    """A function at work on a batch.

    An exception costs only the prompts that raise it: the others are asked again, one by one, while
    there is time.
    """

    def __init__(self, owner: RewardFunction, inputs: RewardInputs) -> None:
        self.owner = owner
        self.inputs = inputs
        self.reported: dict[str, list[float]] = {}
        self._deadline = None if owner.timeout is None else time.monotonic() + owner.timeout
        self._call = self._begin(inputs)

    def result(self) -> Judgement:
        """Wait for it."""
        made = self._finish(self._call, self.inputs)
        if isinstance(made, Exception):
            made = self._apart(made)
        made.reported = self.reported
        return self.owner.settle(made)

    def _begin(self, inputs: RewardInputs) -> LimitedCall | IsolatedCall:
        owner = self.owner
        arguments = arguments_for(
            owner.function, inputs, owner.options, owner.name, owner.messages, self._report
        )
        left = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
        if owner.worker is not None:
            return owner.worker.start(arguments, left)
        return LimitedCall(lambda: owner.function(**arguments), left)

    def _finish(self, call: LimitedCall | IsolatedCall, inputs: RewardInputs) -> Judgement | Exception:
        """A judgement; or the exception that the function raised."""
        try:
            raw = call.result()
        except TimeLimit:
            return all_failed(inputs, f"took longer than {self.owner.timeout:g} s")
        except RewardError:
            # What the function itself says of its arguments is for the user, not for a mask.
            raise
        except Exception as error:
            return error
        return judgement(raw, inputs, self.owner.name, none_is_failure=not self.owner.allow_none)

    def _apart(self, error: Exception) -> Judgement:
        """Ask prompt by prompt after the batch as a whole raised an exception."""
        groups = self.inputs.by_prompt()
        if len(groups) == 1:
            return all_failed(self.inputs, _told(error))
        parts: list[tuple[Sequence[int], Judgement]] = []
        for group in groups:
            some = self.inputs.select(group)
            if self._deadline is not None and time.monotonic() >= self._deadline:
                parts.append((group, all_failed(some, _told(error))))
                continue
            made = self._finish(self._begin(some), some)
            parts.append((group, all_failed(some, _told(made)) if isinstance(made, Exception) else made))
        return joined(parts, len(self.inputs))

    def _report(self, name: str, value: float) -> None:
        self.reported.setdefault(name, []).append(float(value))


def _told(error: Exception) -> str:
    if isinstance(error, RaisedThere):
        return f"raised {error}"
    return f"raised {type(error).__name__}: {error}" if str(error) else f"raised {type(error).__name__}"
