"""A reward for a right answer in mathematics, judged by the package math-verify."""

import importlib.util
from collections.abc import Sequence
from typing import Any

from lit_align.rewards.inputs import RewardError
from lit_align.rewards.isolated import Worker
from lit_align.rewards.limits import TimeLimit

_WORKER = Worker("lit_align.rewards.math_answer.Verifier")


def math_answer(
    completions: Sequence[str], answer: Sequence[Any], *, seconds: float = 5.0
) -> list[float | None]:
    """1 where the completion's answer equals that of the data in mathematics (``1/2``, ``0.5``), 0 elsewhere.

    Verification may hang on hostile or merely odd formulas, so it runs in a process that is killed when
    one takes too long; that completion has no reward (``None``). Needs ``pip install lit-align[math]``.

    Args:
        completions: ``C`` texts.
        answer: ``C`` answers, in LaTeX or plain.
        seconds: that one completion may take.

    Raises:
        RewardError: math-verify is not installed.
    """
    if importlib.util.find_spec("math_verify") is None:
        raise RewardError("reward 'math_answer' needs the package math-verify: pip install 'lit-align[math]'")
    rewards: list[float | None] = []
    for text, wanted in zip(completions, answer, strict=True):
        try:
            rewards.append(_WORKER.call({"completion": text, "answer": str(wanted)}, seconds))
        except TimeLimit:
            rewards.append(None)
    return rewards


class Verifier:
    """Whether an answer is right, without a time limit: what runs in the process."""

    def __init__(self) -> None:
        from math_verify import parse, verify

        self._parse, self._verify = parse, verify
        # The first formula builds the parser, which takes seconds that belong to no completion.
        self("$1$", "1")

    def __call__(self, completion: str, answer: str) -> float | None:
        """1 or 0; ``None`` where the data's answer is no formula."""
        # Its own limits are signals, which are of no use for code that does not come back to Python.
        formula = answer if "$" in answer or "\\" in answer else f"${answer}$"
        right = self._parse(formula, parsing_timeout=None)
        if not right:
            return None
        said = self._parse(completion, parsing_timeout=None)
        return float(self._verify(right, said, timeout_seconds=None))
