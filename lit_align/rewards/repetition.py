"""A penalty for saying the same again."""

from collections.abc import Sequence


def repetition_penalty(completions: Sequence[str], *, ngram: int = 3, penalty: float = 1.0) -> list[float]:
    """Minus the share of n-grams of words that have been there before.

    Yeo et al. (arXiv 2502.03373) use such a penalty: ``r = -penalty * (1 - distinct / all)``. A completion
    shorter than one n-gram repeats nothing.

    Args:
        completions: ``C`` texts.
        ngram: words that make one n-gram.
        penalty: for a completion that is one n-gram over and over, nearly.

    >>> repetition_penalty(["a b a b a b", "each word is another one"], ngram=2)
    [-0.6, 0.0]
    """
    if ngram < 1:
        raise ValueError(f"repetition_penalty: ngram is {ngram}; it must be at least 1 word")
    return [0.0 - penalty * _repeated(text.lower().split(), ngram) for text in completions]


def _repeated(words: list[str], ngram: int) -> float:
    count = len(words) - ngram + 1
    if count < 1:
        return 0.0
    distinct = {tuple(words[i : i + ngram]) for i in range(count)}
    return (count - len(distinct)) / count
