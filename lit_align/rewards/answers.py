"""Rewards for a right answer, by comparison with a column of the data."""

import math
import re
from collections.abc import Sequence
from typing import Any

#: A number that is not part of a word or of another number; a minus between two numbers is not its sign.
_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:,\d{3})*(?:\.\d+)?(?:[eE][-+]?\d+)?")
#: What sets a final answer apart from the work before it: GSM8K's mark, and the box of mathematics.
_MARK = "####"
_BOX = re.compile(r"\\boxed\{([^{}]*)\}")


def exact_match(
    completions: Sequence[str], answer: Sequence[Any], *, ignore_case: bool = True
) -> list[float]:
    """1 where the completion is the answer, apart from white space (and case); 0 elsewhere.

    Args:
        completions: ``C`` texts.
        answer: ``C`` answers; a number is compared as it is written.
        ignore_case: capital and small letters are the same.

    >>> exact_match([" Paris ", "Paris, France"], ["paris", "paris"])
    [1.0, 0.0]
    """

    def plain(value: Any) -> str:
        text = " ".join(str(value).split())
        return text.casefold() if ignore_case else text

    return [float(plain(text) == plain(wanted)) for text, wanted in zip(completions, answer, strict=True)]


def numeric_answer(
    completions: Sequence[str], answer: Sequence[Any], *, tolerance: float = 1e-6
) -> list[float | None]:
    r"""1 where the completion's last number is the answer, 0 elsewhere; ``None`` where the answer is none.

    A completion with ``\boxed{}`` or with GSM8K's ``#### 72`` is judged by the last number in or behind
    the last of these. The answer is a number, or text that is read in the same way.

    Args:
        completions: ``C`` texts.
        answer: ``C`` answers.
        tolerance: largest difference, relative to the answer (absolute below 1).

    >>> numeric_answer(["27 + 45 = 72.", "It is 1,072", "#### 72\nof 80"], [72, "#### 1072", 72])
    [1.0, 1.0, 1.0]
    """
    rewards: list[float | None] = []
    for text, wanted in zip(completions, answer, strict=True):
        right, found = final_number(str(wanted)), final_number(text)
        if right is None:
            rewards.append(None)
        else:
            close = found is not None and math.isclose(found, right, rel_tol=tolerance, abs_tol=tolerance)
            rewards.append(float(close))
    return rewards


def final_number(text: str) -> float | None:
    r"""The number that a text gives as its answer, ``None`` where it has none.

    >>> final_number("7-5 = 2"), final_number("about -0.5 %"), final_number("so \\boxed{3}, not 4")
    (2.0, -0.5, 3.0)
    """
    boxes = _BOX.findall(text)
    if boxes:
        text = boxes[-1]
    elif _MARK in text:
        # The line of the mark: what follows is no longer the answer.
        text = text.rpartition(_MARK)[2].strip().partition("\n")[0]
    numbers = _NUMBER.findall(text.replace("−", "-"))
    return float(numbers[-1].replace(",", "")) if numbers else None
