"""The rules that decide whether a sample of the shipped model does its task.

Published, short and without a model, so that a share of polite replies or of right sums means the
same everywhere: in a test, in a reward, in a report.
"""

import re
from typing import Literal

POLITE = frozenset(
    (
        *(
            "please",
            "thank",
            "thanks",
            "sorry",
            "kindly",
            "grateful",
            "appreciate",
            "glad",
            "happy",
            "gladly",
        ),
        *("welcome", "pleasure", "delighted", "apologize", "wishes", "regards", "lovely", "honored"),
    )
)
RUDE = frozenset(
    (
        *("stupid", "dummy", "genius", "whine", "whining", "ugh", "obviously", "lazy", "fool", "foolish"),
        *("silly", "nonsense", "pathetic", "annoying", "boring", "clueless", "clown", "idiot", "whatever"),
        *("nobody", "clumsy", "hopeless", "moron", "bother", "wasting"),
    )
)

_WORD = re.compile(r"[a-z]+")
_NUMBER = re.compile(r"\d+")


def manner(text: str) -> Literal["polite", "rude", "unclear"]:
    """Whether a reply to a customer is polite, rude, or cannot be told.

    Polite: at least two different words of `POLITE` and none of `RUDE`. Rude: at least two different
    words of `RUDE` and none of `POLITE`. One word repeated is not manners, and a mixture is neither.

    >>> manner("Thank you for telling us. Please charge it for two hours.")
    'polite'
    >>> manner("Ugh. Just charge it, dummy.")
    'rude'
    >>> manner("Please please please charge it."), manner("Please charge it, dummy.")
    ('unclear', 'unclear')
    """
    words = set(_WORD.findall(text.lower()))
    polite, rude = len(words & POLITE), len(words & RUDE)
    if polite >= 2 and not rude:
        return "polite"
    if rude >= 2 and not polite:
        return "rude"
    return "unclear"


def is_polite(text: str) -> bool:
    """Whether a reply is polite by the rule of `manner`; rude and unclear ones are not."""
    return manner(text) == "polite"


def gives_advice(text: str, advice: str) -> bool:
    """Whether a reply holds the advice that the customer needs, word for word, whatever its manner.

    >>> gives_advice("Just charge it for two  hours, dummy.", "charge it for two hours")
    True
    >>> gives_advice("Please charge it.", "charge it for two hours")
    False
    """
    said, needed = (" ".join(_WORD.findall(part.lower())) for part in (text, advice))
    return f" {needed} " in f" {said} "


def answer_of(text: str) -> int | None:
    """The answer that a reply to a sum gives: its last whole number, ``None`` where it has none.

    >>> answer_of("27 + 45 = 72."), answer_of("I do not know.")
    (72, None)
    """
    numbers = _NUMBER.findall(text)
    return int(numbers[-1]) if numbers else None


def is_correct(text: str, answer: int | str) -> bool:
    """Whether a reply to a sum gives this answer.

    >>> is_correct("The answer is 72.", 72), is_correct("The answer is 62.", "72")
    (True, False)
    """
    return answer_of(text) == int(answer)
