from types import SimpleNamespace

import pytest

from lit_align.models.tokenizers import load_tokenizer
from lit_align.runtime.chat_template import EndlessTemplate, apply_template

MESSAGES = [{"role": "user", "content": "Hello"}]


class Tokenizer(SimpleNamespace):
    name_or_path = "some/model"

    def apply_chat_template(self, messages, chat_template, tokenize, **options):
        assert not tokenize
        return f"{len(messages)} {chat_template} {sorted(options)}"


def test_what_is_given_reaches_the_tokenizer():
    one = Tokenizer(chat_template="x")
    assert apply_template(one, [{}, {}], "here", tools=None) == "2 None ['tools']"
    assert apply_template(one, [{}], "here", chat_template="y") == "1 y []"


@pytest.mark.parametrize(
    ("own", "given", "refused"),
    [
        ("{{ 2 ** 2 }}", None, True),
        ("{{ 2 ** 2 }}", "mine", False),
        ("fine", "{{ 2 ** 2 }}", True),
        ({"default": "fine", "tool_use": "{{ 2 ** 2 }}"}, "tool_use", True),
        ({"default": "fine", "tool_use": "{{ 2 ** 2 }}"}, "default", False),
        ({"default": "fine", "tool_use": "{{ 2 ** 2 }}"}, None, False),
        ("{% set n = 7 ** 9999 %}", None, True),
    ],
)
def test_powers_are_refused_in_the_template_that_is_used(own, given, refused):
    tokenizer = load_tokenizer("lit-align/tiny")
    tokenizer.chat_template = own
    if not refused:
        assert apply_template(tokenizer, MESSAGES, "here", chat_template=given)
        return
    with pytest.raises(EndlessTemplate, match=r"here: the chat template (of|given for) \S+ computes a power"):
        apply_template(tokenizer, MESSAGES, "here", chat_template=given)


def test_numbers_that_grow_without_end_are_refused():
    tokenizer = load_tokenizer("lit-align/tiny")
    squares = "{% set n = namespace(v=3) %}{% for i in range(99) %}{% set n.v = n.v * n.v %}{% endfor %}"
    with pytest.raises(EndlessTemplate, match=r"multiplies whole numbers to more than 10,000 bits"):
        apply_template(tokenizer, MESSAGES, "here", chat_template=squares)
    assert apply_template(tokenizer, MESSAGES, "here", chat_template="{{ 6 * 7 }}") == "42"
