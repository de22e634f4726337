"""Texts that end a completion are found in the token that completes them, and not again."""

from types import SimpleNamespace

import pytest

from lit_align.models.tokenizers import load_tokenizer
from lit_align.rollouts.sampling import Sampling
from lit_align.rollouts.stopping import StopTexts, stop_tokens


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("lit-align/tiny")


@pytest.mark.parametrize("stop", ["\n\n", "my order", "é", "?"])
def test_the_token_that_completes_a_text_ends_it(tokenizer, stop):
    ids = tokenizer("Where is my order, please?\n\nIt was é to come. my order", add_special_tokens=False)
    ids = ids["input_ids"]
    texts = StopTexts([stop], tokenizer)
    found = [n for n in range(1, len(ids) + 1) if texts.ends(ids[:n])]
    counts = [tokenizer.decode(ids[:n]).count(stop) for n in range(len(ids) + 1)]
    assert found == [n for n in range(1, len(ids) + 1) if counts[n] > counts[n - 1]]
    assert found


def test_no_text_no_end(tokenizer):
    assert not StopTexts([], tokenizer).ends(tokenizer("Hello")["input_ids"])


def test_texts_need_a_tokenizer():
    with pytest.raises(ValueError, match="need a tokenizer"):
        StopTexts(["x"], None)


@pytest.mark.parametrize(("own", "expected"), [(7, {3, 5, 7}), ([7, 8], {3, 5, 7, 8}), (None, {3, 5})])
def test_stop_tokens_of_everyone(own, expected):
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=own))
    tokenizer = SimpleNamespace(eos_token_id=3)
    assert stop_tokens(model, tokenizer, Sampling(stop_token_ids=[5])) == expected
    assert stop_tokens(SimpleNamespace(), None, Sampling()) == frozenset()
