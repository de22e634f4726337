import pytest

from lit_align.rewards.patterns import regex, think_format


def test_regex_searches_or_matches_whole():
    texts = ["Answer: 4", "The Answer: 4.", "Answer:\n4"]
    assert regex(texts, pattern=r"Answer:.\d") == [1.0, 1.0, 1.0]
    assert regex(texts, pattern=r"Answer:.\d", full=True) == [1.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ("<think>a</think>b", 1.0),
        ("\n<think>\na\n</think>\n\nb\n", 1.0),
        ("<think></think>b", 1.0),
        ("b<think>a</think>b", 0.0),
        ("<think>a</think>", 0.0),
        ("<think>a</think> \n", 0.0),
        ("<think>a</think>b</think>c", 0.0),
        ("<think>a<think>b</think>c", 0.0),
        ("<think>a</think>b<think>c</think>", 0.0),
        ("<think>a", 0.0),
        ("", 0.0),
    ],
)
def test_one_thought_and_something_said(text, reward):
    assert think_format([text]) == [reward]
