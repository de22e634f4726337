"""Rewards of the task that comes with the package: customers' messages."""

from collections.abc import Sequence

from lit_align.shipped import tasks


def polite(completions: Sequence[str]) -> list[float]:
    """1 where a reply is polite by the rule of `lit_align.shipped.tasks.manner`, 0 elsewhere.

    Args:
        completions: ``C`` texts.

    >>> polite(["Thank you for telling us. Please charge it.", "Just charge it."])
    [1.0, 0.0]
    """
    return [float(tasks.is_polite(text)) for text in completions]


def gives_advice(completions: Sequence[str], advice: Sequence[str]) -> list[float]:
    """1 where a reply holds the advice of the data word for word, 0 elsewhere.

    Args:
        completions: ``C`` texts.
        advice: ``C`` texts, the column of ``lit-align/manners-prompts``.
    """
    return [float(tasks.gives_advice(text, needed)) for text, needed in zip(completions, advice, strict=True)]
