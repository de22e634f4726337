"""Completions as they grow, on logits that leave no choice."""

import pytest
import torch

from lit_align.models.tokenizers import load_tokenizer
from lit_align.rollouts.sampling import Sampling
from lit_align.rollouts.transcript import Transcript

CPU = torch.device("cpu")


def sure(*tokens, vocabulary=9):
    """Logits whose most probable token is given, and second the one after it."""
    logits = torch.zeros(len(tokens), vocabulary)
    for row, token in zip(logits, tokens, strict=True):
        row[token], row[(token + 1) % vocabulary] = 8.0, 4.0
    return logits


def transcript(completions=2, seeds=(1, 2), values=False, tokenizer=None, **sampling):
    settings = Sampling(**{"max_new_tokens": 4, "temperature": 0.0} | sampling)
    return Transcript([[5, 6]], completions, settings, list(seeds), frozenset({2}), tokenizer, CPU, values)


def test_rows_in_any_order_and_company():
    script = transcript(values=True)
    assert script.write([1, 0], sure(3, 2), torch.tensor([0.5, 0.25])).tolist() == [3, 2]
    assert script.running == [False, True]
    script.write([1], sure(4), torch.tensor([1.5]))
    script.write([1], sure(2), torch.tensor([2.5]))
    forest = script.forest()
    assert list(forest.sequences()) == [([5, 6], [2], [1.0]), ([5, 6], [3, 4, 2], [1.0] * 3)]
    assert forest.token_columns["values"].tolist() == [0.25, 0.5, 1.5, 2.5]
    assert forest.completion_columns["finished"].tolist() == [True, True]
    expected = sure(2, 3, 4, 2).log_softmax(-1)[torch.arange(4), torch.tensor([2, 3, 4, 2])]
    torch.testing.assert_close(forest.token_columns["old_logps"], expected)


def test_a_limit_cuts_off():
    script = transcript(1, [1], max_new_tokens=2)
    script.write([0], sure(3))
    assert script.running == [True]
    script.write([0], sure(3))
    assert (script.running, script.finished) == ([False], [False])


def test_an_end_at_the_limit_is_an_end():
    script = transcript(1, [1], max_new_tokens=1)
    script.write([0], sure(2))
    assert script.finished == [True]


def test_no_end_before_the_minimum():
    """The end is made impossible, and the next best token comes."""
    script = transcript(1, [1], min_new_tokens=2)
    assert [int(script.write([0], sure(2))) for _ in range(3)] == [3, 3, 2]
    assert script.finished == [True]


def test_the_prompt_counts_as_repetition():
    script = transcript(1, [1], repetition_penalty=10.0)
    # 6 stands in the prompt: 8 / 10 < 4. Once 7 is written its 4 / 10 is below 8 / 10.
    assert [int(script.write([0], sure(6))) for _ in range(2)] == [7, 6]
    assert int(script.write([0], sure(7))) == 8


def test_a_text_ends():
    tokenizer = load_tokenizer("lit-align/tiny")
    ids = tokenizer("my order", add_special_tokens=False)["input_ids"]
    script = transcript(1, [1], max_new_tokens=len(ids) + 5, tokenizer=tokenizer, stop=["order"])
    for token in ids:
        assert script.running == [True]
        script.write([0], sure(token, vocabulary=len(tokenizer)))
    assert script.finished == [True]


def test_lengths_are_drawn():
    script = transcript(40, range(40), max_new_tokens=6, shortest_limit=4)
    assert set(script.limits) == {4, 5, 6}


@pytest.mark.parametrize("sampling", [{"shortest_limit": 2}, {"max_new_tokens": 9}, {"top_k": 5}])
def test_other_options_do_not_shift_the_draws(sampling):
    logits = torch.randn(1, 5, generator=torch.Generator().manual_seed(0))
    plain, other = transcript(1, [3], temperature=1.0), transcript(1, [3], temperature=1.0, **sampling)
    assert plain.write([0], logits).tolist() == other.write([0], logits).tolist()
