r"""Preference rows: where the prompt ends when nobody says so, and which pairs carry no signal.

The prompt of ``chosen``/``rejected`` texts that repeat it is their longest common beginning, moved
back to a place where the next words of both begin: spaces go with the word behind them, as byte-level
BPE has them, line breaks stay in front of it. Two replies that happen to begin alike share their first
words with the prompt; these have the same log-probs on both sides. ``prompt_end`` (such as
``"\n\nAssistant:"``) cuts behind its last occurrence in the common part instead.
"""

from collections.abc import Iterator, Sequence
from itertools import islice

from lit_align.datamodules.columns import Message
from lit_align.datamodules.tokenize import Encoder, common_prefix

#: Places that are tried, from the last backwards, for one where no token lies across.
_TRIES = 16


def common_messages(chosen: Sequence[Message], rejected: Sequence[Message]) -> int:
    """How many messages of two conversations are their common prompt.

    The prompt ends before an assistant's message on both sides.

    >>> user, a, b = ({"role": r, "content": "Hi " + r} for r in ("user", "assistant", "assistant"))
    >>> b["content"] = "Bye"
    >>> common_messages([user, a], [user, b]), common_messages([user, a], [user, a])
    (1, 1)
    """
    shared = common_prefix(chosen, rejected)
    shared = min(shared, len(chosen) - 1, len(rejected) - 1)
    while shared > 0 and not chosen[shared]["role"] == rejected[shared]["role"] == "assistant":
        shared -= 1
    return shared


def common_text(chosen: str, rejected: str, encoder: Encoder, prompt_end: str | None = None) -> int:
    """Length of the common prompt of two texts, in characters, cut where no token boundary shifts.

    Args:
        chosen: prompt and preferred reply.
        rejected: prompt and other reply.
        encoder: the tokenizer.
        prompt_end: text that ends every prompt.

    Returns:
        A length ``n`` such that ``chosen[:n] == rejected[:n]`` and, unless no such place is found among
        the last ones, the tokens of ``chosen[:n]`` begin the tokens of both texts.
    """
    shared = common_prefix(chosen, rejected)
    if prompt_end:
        at = chosen.rfind(prompt_end, 0, shared)
        if at >= 0:
            return at + len(prompt_end)
    candidates = _word_starts(chosen, rejected, shared)
    first = next(candidates)
    prompt, *wholes = encoder.encode([chosen[:first], chosen, rejected])
    if all(ids[: len(prompt)] == prompt for ids in wholes):
        return first
    for n in islice(candidates, _TRIES):
        (prompt,) = encoder.encode([chosen[:n]])
        if all(ids[: len(prompt)] == prompt for ids in wholes):
            return n
    return first


def _word_starts(chosen: str, rejected: str, shared: int) -> Iterator[int]:
    """Places at or before ``shared`` where words of both texts begin, from the last to the first."""
    for n in range(shared, 0, -1):
        if all(_begins_word(text, n) for text in (chosen, rejected)):
            yield n
    yield 0


def _begins_word(text: str, n: int) -> bool:
    """Whether ``text[n:]`` is empty, or begins with the space before a word, or a word on a new line.

    >>> [n for n in range(1, 9) if _begins_word("Hi: you.", n)]
    [3, 8]
    """
    before, behind = text[n - 1], text[n : n + 1]
    if not behind:
        return True
    if behind.isspace():
        return not before.isspace()
    return before == "\n" or (_stands_alone(before) and _stands_alone(behind))


def _stands_alone(character: str) -> bool:
    """Whether a character is a word of its own in a script written without spaces."""
    return "\u2e80" <= character <= "\u9fff"
