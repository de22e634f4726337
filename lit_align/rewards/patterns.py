"""Rewards for the form of a completion."""

import re
from collections.abc import Sequence

_THINK = re.compile(r"\s*<think>(?P<thought>.*?)</think>(?P<rest>.*)", re.DOTALL)


def regex(completions: Sequence[str], *, pattern: str, full: bool = False) -> list[float]:
    """1 where the pattern is found in the completion, 0 elsewhere.

    Python's matcher cannot be stopped once it runs: a pattern with nested repetitions such as ``(a+)+$``
    may take for ever on some text. Use ``isolate`` with one you are not sure of.

    Args:
        completions: ``C`` texts.
        pattern: a regular expression of Python; a dot takes line breaks too.
        full: the whole completion has to match.

    >>> regex(["Answer: 4", "4"], pattern=r"^Answer: [0-9]+$")
    [1.0, 0.0]
    """
    compiled = re.compile(pattern, re.DOTALL)
    match = compiled.fullmatch if full else compiled.search
    return [float(match(text) is not None) for text in completions]


def think_format(completions: Sequence[str]) -> list[float]:
    """1 where the completion is one ``<think>...</think>`` with something said behind it, 0 elsewhere.

    >>> think_format(["<think>2 + 2</think>4", "4", "<think>2 + 2</think>"])
    [1.0, 0.0, 0.0]
    """
    return [float(_thinks(text)) for text in completions]


def _thinks(text: str) -> bool:
    found = _THINK.fullmatch(text)
    if found is None or not found["rest"].strip():
        return False
    return "<think>" not in found["thought"] + found["rest"] and "</think>" not in found["rest"]
