import pytest

from lit_align.datamodules.bad_rows import BadRow, DataError
from lit_align.datamodules.chat import ChatRenderer, Conversation


def say(role, content, **more):
    return {"role": role, "content": content, **more}


TALK = [
    say("system", "Be kind."),
    say("user", "How are you?"),
    say("assistant", "Fine."),
    say("user", "And now?"),
    say("assistant", "Still fine."),
]

#: Each message by itself: the conversation so far is how a longer one begins.
TURN = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
GENERATION_PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
MARKED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>assistant\n"
    "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}\n"
    "{% else %}" + TURN + "{% endif %}{% endfor %}" + GENERATION_PROMPT
)
#: Marks that leave the end of the turn out.
SHORT_MARKS = MARKED.replace("<|im_end|>{% endgeneration %}", "{% endgeneration %}<|im_end|>")
#: Reasoning is shown in the last turn only, as in several published templates.
FORGETFUL = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}{{ m.content }}"
    "{% else %}{{ m.content.split('</think>')[-1] }}{% endif %}<|im_end|>\n"
    "{% endfor %}" + GENERATION_PROMPT
)
#: Nothing ends a turn but a line break.
BARE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
STRICT = "{% if messages[0].role != 'user' %}{{ raise_exception('must begin with user') }}{% endif %}" + (
    "{% for m in messages %}" + TURN + "{% endfor %}" + GENERATION_PROMPT
)
REWRITING = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | upper }}<|im_end|>\n{% endfor %}"


def learned(tokenizer, messages, template=None, first=0, **more):
    prompt, pieces = ChatRenderer(tokenizer, template).pieces(Conversation("here", messages, **more), first)
    return prompt, [text for text, weight in pieces if weight], "".join(text for text, _ in pieces)


@pytest.mark.parametrize("template", [None, MARKED, SHORT_MARKS])
def test_the_assistants_turns_are_learned_with_their_end(chat, template):
    prompt, spans, behind = learned(chat, TALK, template)
    assert prompt.endswith("How are you?<|im_end|>\n<|im_start|>assistant\n")
    assert spans == ["Fine.<|im_end|>", "Still fine.<|im_end|>"]
    assert behind.endswith("And now?<|im_end|>\n<|im_start|>assistant\nStill fine.<|im_end|>")


def test_the_prompt_is_what_generation_renders(chat):
    prompt, _, _ = learned(chat, TALK)
    assert prompt == chat.apply_chat_template(TALK[:2], tokenize=False, add_generation_prompt=True)


def test_a_template_that_forgets_reasoning(chat):
    talk = [
        say("user", "1+1"),
        say("assistant", "<think>easy</think>2"),
        say("user", "2+2"),
        say("assistant", "4"),
    ]
    _, spans, behind = learned(chat, talk, FORGETFUL)
    assert spans == ["2<|im_end|>", "4<|im_end|>"]
    assert "easy" not in behind


def test_a_template_without_an_end_of_turn(chat):
    prompt, spans, _ = learned(chat, TALK, BARE)
    assert prompt == "system: Be kind.\nuser: How are you?\nassistant: "
    assert spans == ["Fine.\n", "Still fine.\n"]


def test_a_conversation_that_the_assistant_begins(chat):
    prompt, spans, _ = learned(chat, [say("assistant", "Hello!"), say("user", "Hi")])
    assert prompt == "<|im_start|>assistant\n"
    assert spans == ["Hello!<|im_end|>"]


def test_what_follows_the_last_reply_is_cut_off(chat):
    _, _, behind = learned(chat, [*TALK, say("user", "Bye")])
    assert behind.endswith("Still fine.<|im_end|>")


def test_only_messages_from_the_first_on_are_learned(chat):
    prompt, spans, _ = learned(chat, TALK, first=4)
    assert spans == ["Still fine.<|im_end|>"]
    assert "Fine." in prompt


def test_marks_are_matched_to_messages_from_the_first_on(chat):
    assert learned(chat, TALK, MARKED, first=4)[1] == ["Still fine.<|im_end|>"]


@pytest.mark.parametrize(
    ("flag", "weight"), [({"train": False}, 0.0), ({"weight": 0.25}, 0.25), ({"train": True}, 1.0)]
)
@pytest.mark.parametrize("template", [None, MARKED])
def test_a_message_has_a_weight(chat, flag, weight, template):
    talk = [*TALK[:2], say("assistant", "Fine.", **flag), *TALK[3:]]
    _, pieces = ChatRenderer(chat, template).pieces(Conversation("here", talk))
    assert [w for _, w in pieces] == [weight, 0.0, 1.0]


@pytest.mark.parametrize("flag", [{"train": "no"}, {"weight": -1}, {"weight": True}, {"weight": "2"}])
def test_a_weight_that_is_none_is_refused(chat, flag):
    with pytest.raises(BadRow, match=r"message 1.(train|weight): expected"):
        learned(chat, [say("user", "Hi"), say("assistant", "Hello", **flag)])


def test_tools_and_options_reach_the_template(chat):
    template = (
        "{% if tools %}TOOLS {{ tools | length }} {% endif %}{% if quiet %}QUIET {% endif %}"
        "{% for m in messages %}" + TURN + "{% endfor %}" + GENERATION_PROMPT
    )
    prompt, _, _ = learned(
        chat, TALK[1:3], template, tools=[{"type": "function"}], template_options={"quiet": True}
    )
    assert prompt.startswith("TOOLS 1 QUIET <|im_start|>user")


def test_a_tool_call_without_content(chat):
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
        "{% if m.tool_calls %}CALL {{ m.tool_calls[0].name }}{% endif %}<|im_end|>\n{% endfor %}"
        + GENERATION_PROMPT
    )
    talk = [
        say("user", "Weather?"),
        say("assistant", "", tool_calls=[{"name": "look"}]),
        say("tool", "sunny"),
        say("assistant", "Sunny."),
    ]
    _, spans, behind = learned(chat, talk, template)
    assert spans == ["CALL look<|im_end|>", "Sunny.<|im_end|>"]
    assert "sunny<|im_end|>" in behind


def test_no_mask_is_ever_empty_in_silence(chat):
    with pytest.raises(
        BadRow, match="here: no assistant message to learn from; found the roles system, user"
    ):
        learned(chat, TALK[:2])


def test_a_span_without_its_content_is_refused(chat):
    with pytest.raises(BadRow, match="cannot tell where message 2"):
        learned(chat, TALK, REWRITING)


def test_a_refusing_template_is_named_with_the_row(chat):
    with pytest.raises(
        BadRow, match=r"here: the chat template refuses .* system, user.*must begin with user"
    ):
        learned(chat, TALK, STRICT)


def test_a_tokenizer_without_template(plain):
    with pytest.raises(DataError, match=r"has no chat template. Give one with chat_template"):
        learned(plain, TALK)
