"""Chat templates are text from strangers, and get no further than text."""

import contextlib
from typing import Any

import pytest

from lit_align.datamodules.bad_rows import BadRow
from lit_align.datamodules.chat import ChatRenderer, Conversation
from lit_align.models.tokenizers import load_tokenizer, missing_stop

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
    "{% for i in range(10 ** 9) %}{{ i }}{% endfor %}",
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
