"""Chat templates are text from strangers, and get no further than text."""

import contextlib
import tracemalloc
from typing import Any

import pytest

from lit_align.datamodules.bad_rows import BadRow, DataError
from lit_align.datamodules.chat import ChatRenderer, Conversation
from lit_align.models.tokenizers import load_tokenizer, missing_stop
from lit_align.rollouts.generate import encode_prompt
from lit_align.runtime import chat_template
from lit_align.runtime.chat_template import EndlessTemplate

TEMPLATES = [
    "{{ cycler.__init__.__globals__.os.system('MARK') }}",
    "{{ lipsum.__globals__['os'].system('MARK') }}",
    "{{ joiner.__init__.__globals__.os.popen('MARK').read() }}",
    "{{ namespace.__init__.__globals__.os.system('MARK') }}",
    "{{ raise_exception.__globals__['__builtins__']['__import__']('os').system('MARK') }}",
    "{{ strftime_now.__globals__.__builtins__.__import__('os').system('MARK') }}",
    "{{ self.__init__.__globals__.__builtins__.__import__('os').system('MARK') }}",
    "{{ ''.__class__.__mro__[1].__subclasses__()[0].__init__.__globals__ }}",
    "{{ messages.__class__.__base__.__subclasses__() }}",
    "{{ (messages | attr('__class__')) | attr('__mro__') }}",
    "{{ ''['__class__'] }}{{ ''|attr('\\x5f\\x5fclass\\x5f\\x5f') }}",
    "{{ '%s' | format(messages.__class__) }}{{ '{0.__class__}'.format(messages) }}",
    "{% for c in [].__class__.__base__.__subclasses__() %}"
    "{% if 'Popen' in c.__name__ %}{{ c('MARK', shell=True) }}{% endif %}{% endfor %}",
    "{{ messages.append({'role': 'system', 'content': 'MARK'}) }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os.system('MARK') }}",
    "{% for i in range(1000000000) %}{{ i }}{% endfor %}",
    "{{ tools.__class__ }}{{ bos_token.__class__.__init__.__globals__ }}",
]
MESSAGES = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good day"}]


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_template_reaches_no_code(template: str, marks: Any) -> None:
    tokenizer = load_tokenizer("lit-align/tiny")
    messages = [dict(message) for message in MESSAGES]
    conversation = Conversation("row 1", messages)
    text = ""
    with contextlib.suppress(BadRow):
        text = ChatRenderer(tokenizer, template.replace("MARK", marks.shell)).render(conversation, messages)
    # An attribute that the sandbox hides is rendered as nothing.
    assert "<class" not in text
    assert "root:" not in text
    assert messages == MESSAGES
    # The look at a tokenizer before training goes the same way.
    tokenizer.chat_template = template.replace("MARK", marks.shell)
    missing_stop(tokenizer)


LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}BODY{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    "template",
    [
        LOOP.replace("BODY", ""),
        LOOP.replace("BODY", "{% set x = i * j %}"),
        LOOP.replace("BODY", "{% generation %}{% endgeneration %}"),
        "{% macro again() %}"
        + LOOP.replace("BODY", "{{ i | string | length }}")
        + "{% endmacro %}{{ again() }}",
    ],
)
def test_a_template_that_does_not_end_is_stopped(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "SECONDS", 0.3)
    tokenizer = load_tokenizer("lit-align/tiny")
    conversation = Conversation("data.jsonl, row 7", [dict(message) for message in MESSAGES])
    # Not a bad row, which could be left out: every row would take as long.
    with pytest.raises(
        DataError, match=r"data.jsonl, row 7: the chat template given for \S+ was stopped"
    ) as found:
        ChatRenderer(tokenizer, template).pieces(conversation)
    assert not isinstance(found.value, BadRow)
    tokenizer.chat_template = template
    with pytest.raises(EndlessTemplate, match="prompt 3: the chat template"):
        encode_prompt(tokenizer, MESSAGES[:1], 3)
    with pytest.raises(EndlessTemplate, match="a plain exchange: the chat template"):
        missing_stop(tokenizer)


@pytest.mark.parametrize("template", ["{{ 9 ** 9 ** 9 ** 9 }}", "{% set x = messages | length ** 2 %}"])
def test_powers_are_refused(template: str) -> None:
    tokenizer = load_tokenizer("lit-align/tiny")
    conversation = Conversation("row 1", [dict(message) for message in MESSAGES])
    with pytest.raises(DataError, match=r"computes a power \(\*\*\)"):
        ChatRenderer(tokenizer, template).render(conversation, conversation.messages)


def test_stars_in_text_and_named_arguments_are_no_powers() -> None:
    template = "**bold** {{ dict(**{'a': 1}).a }} {{ '2 ** 3' }}{{ messages[0].content }}"
    tokenizer = load_tokenizer("lit-align/tiny")
    conversation = Conversation("row 1", [dict(message) for message in MESSAGES])
    text = ChatRenderer(tokenizer, template).render(conversation, conversation.messages)
    assert text == "**bold** 1 2 ** 3Hello"


def test_a_template_that_writes_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "CHARACTERS", 1000)
    tokenizer = load_tokenizer("lit-align/tiny")
    conversation = Conversation("row 1", [dict(message) for message in MESSAGES])
    with pytest.raises(DataError, match=r"row 1: .* wrote 3,000 characters, more than 1,000"):
        ChatRenderer(tokenizer, "{% for i in range(1000) %}abc{% endfor %}").render(
            conversation, conversation.messages
        )


@pytest.mark.parametrize(
    ("template", "found"),
    [
        ("{{ 'a' * 300000000 }}", "text to a length of 300,000,000, more than 50,000,000"),
        ("{{ 300000000 * 'a' }}", "text to a length of 300,000,000"),
        ("{% set n = 30000 %}{{ messages[0].content * n * n }}", "text to a length of"),
        ("{{ ([0] * 90000000) | length }}", "a list to a length of 90,000,000, more than 6,250,000"),
        ("{% generation %}{{ 'a' * 300000000 }}{% endgeneration %}", "text to a length of 300,000,000"),
    ],
)
def test_large_products_are_refused_before_they_are_made(template: str, found: str) -> None:
    tokenizer = load_tokenizer("lit-align/tiny")
    conversation = Conversation("row 1", [dict(message) for message in MESSAGES])
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=f"row 1: .* multiplies {found}"):
            ChatRenderer(tokenizer, template).pieces(conversation)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20_000_000


def test_small_products_are_as_ever() -> None:
    template = "{{ '=' * 3 }}{{ 2 * 3 * 1.5 }}{{ ([1, 2] * 2) | length }}{{ 'a' * -1 }}{{ true * 'b' }}"
    tokenizer = load_tokenizer("lit-align/tiny")
    conversation = Conversation("row 1", [dict(message) for message in MESSAGES])
    assert ChatRenderer(tokenizer, template).render(conversation, conversation.messages) == "===9.04b"
