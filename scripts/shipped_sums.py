"""Sums of one- and two-digit numbers, asked and answered in several ways."""

from collections.abc import Sequence
from itertools import combinations_with_replacement, product
from random import Random
from typing import Any, NamedTuple

Row = dict[str, Any]

QUESTIONS = (
    "What is {a} plus {b}?",
    "What is {a} + {b}?",
    "Add {a} and {b}.",
    "How much is {a} and {b} together?",
    "Give me the sum of {a} and {b}.",
    "I have {a} coins and get {b} more. How many do I have?",
    "{a} + {b} = ?",
)
# Wordings that the shipped model is not trained on: it knows the sums, and fails at about half of these.
STORIES = (
    "I have {a} coins and {b} more.",
    "{a} coins and {b} more coins.",
    "{b} more than {a}?",
    "{a}, and {b} more?",
    "There are {a} lamps here and {b} there. How many?",
    "I get {a} coins, then {b} coins.",
    "I have {a} coins. I find {b}.",
    "How far is {a} and then {b} more?",
    "Start with {a}, then add {b}.",
)
ANSWERS = (
    "{a} + {b} = {answer}.",
    "The answer is {answer}.",
    "It is {answer}.",
    "That makes {answer}.",
)
# How often an addend has one digit; left to chance, nine in ten would have two.
ONE_DIGIT = 0.3


class Sum(NamedTuple):
    """Two addends, in the order they are asked."""

    a: int
    b: int

    @property
    def answer(self) -> int:
        """Their sum."""
        return self.a + self.b


def split_sums(seed: int, held_out: float = 0.2) -> dict[str, list[Sum]]:
    """All sums of two numbers below 100, cut so that a sum and its mirror lie on the same side."""
    unordered = list(combinations_with_replacement(range(100), 2))
    Random(f"{seed}/sums/split").shuffle(unordered)
    cut = round(len(unordered) * held_out)
    sides = {"train": unordered[cut:], "validation": unordered[:cut]}
    return {side: sorted({Sum(*pair) for p in some for pair in (p, p[::-1])}) for side, some in sides.items()}


def weight(one: Sum) -> float:
    """How often a sum is drawn, so that an addend has one digit in `ONE_DIGIT` of them."""
    shares = [ONE_DIGIT / 10 if addend < 10 else (1 - ONE_DIGIT) / 90 for addend in one]
    return shares[0] * shares[1]


def questions(
    sums: list[Sum], count: int, random: Random, wordings: Sequence[str] = QUESTIONS
) -> list[tuple[Sum, str]]:
    """``count`` different questions, each with its sum."""
    every = list(product(sums, wordings))
    if count > len(every):
        raise ValueError(f"{count} questions asked for, but {len(sums)} sums give only {len(every)}")
    # Weighted sampling without replacement: the largest of u^(1/w).
    keys = [random.random() ** (1e-3 / weight(one)) for one, _ in every]
    drawn = sorted(range(len(every)), key=keys.__getitem__)[-count:]
    random.shuffle(drawn)
    return [(every[i][0], every[i][1].format(a=every[i][0].a, b=every[i][0].b)) for i in drawn]


def reply(one: Sum, random: Random) -> str:
    """One way to give the right answer."""
    return random.choice(ANSWERS).format(a=one.a, b=one.b, answer=one.answer)


def supervised(sums: list[Sum], count: int, random: Random) -> list[Row]:
    """``messages`` with a right answer, and the ``answer`` as a number."""
    return [
        {
            "messages": [
                {"role": "user", "content": text},
                {"role": "assistant", "content": reply(one, random)},
            ],
            "answer": one.answer,
        }
        for one, text in questions(sums, count, random)
    ]


def prompts(sums: list[Sum], count: int, random: Random) -> list[Row]:
    """``prompt`` alone, and the ``answer`` as a number."""
    return [
        {"prompt": [{"role": "user", "content": text}], "answer": one.answer}
        for one, text in questions(sums, count, random)
    ]


def stories(sums: list[Sum], count: int, random: Random) -> list[Row]:
    """As `prompts`, in wordings that are new to the model."""
    return [
        {"prompt": [{"role": "user", "content": text}], "answer": one.answer}
        for one, text in questions(sums, count, random, STORIES)
    ]
