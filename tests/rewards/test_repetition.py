import pytest

from lit_align.rewards.repetition import repetition_penalty


def test_the_share_of_repeated_ngrams():
    # Trigrams of "a b a b a b": aba bab aba bab, of which two are new.
    assert repetition_penalty(["a b a b a b", "a b c d", "A a a a", "a b"]) == [-0.5, 0.0, -0.5, 0.0]
    assert repetition_penalty(["x x x x x"], ngram=1, penalty=2.0) == [-1.6]


def test_an_ngram_has_a_word():
    with pytest.raises(ValueError, match="ngram is 0"):
        repetition_penalty(["a"], ngram=0)
