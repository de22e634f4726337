from types import SimpleNamespace

import pytest

from lit_align.runtime.chat_template import EndlessTemplate, apply_template


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
        ({"default": "fine", "tool_use": "{{ 2 ** 2 }}"}, None, True),
        ({"default": "fine", "tool_use": "{{ 2 ** 2 }}"}, "tool_use", True),
        ({"default": "fine", "tool_use": "{{ 2 ** 2 }}"}, "default", False),
        ("{{ broken", None, False),
    ],
)
def test_the_template_that_is_looked_at_is_the_one_that_is_used(own, given, refused):
    tokenizer = Tokenizer(chat_template=own)
    if not refused:
        assert apply_template(tokenizer, [], "here", chat_template=given)
        return
    with pytest.raises(EndlessTemplate, match=r"the chat template (of|given for) some/model computes"):
        apply_template(tokenizer, [], "here", chat_template=given)
