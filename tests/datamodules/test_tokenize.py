import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lit_align.datamodules.bad_rows import BadRow
from lit_align.datamodules.tokenize import Draft, Encoder, common_prefix


def draft(prompt, *completions, plain=True):
    pieces = tuple(((text, 1.0),) if isinstance(text, str) else tuple(text) for text in completions)
    return Draft(0, "here", prompt, pieces, plain, {})


def test_eos_ends_a_completion_once(plain):
    encoder = Encoder(plain)
    (row, closed) = encoder.rows([draft("Answer:", " yes"), draft("Answer:", " yes<|end|>")])
    assert row.completions[0][-1] == encoder.eos
    assert closed.completions == row.completions
    assert row.weights == [[1.0] * len(row.completions[0])]


def test_a_token_across_the_boundary_is_not_made(plain):
    # " yes" is one token; a prompt that ends in the space is what generation gets.
    encoder = Encoder(plain)
    (row,) = encoder.rows([draft("Answer: ", "yes")])
    assert row.prompt == encoder.encode(["Answer: "])[0]
    assert row.completions[0][:-1] == encoder.encode(["yes"])[0]
    assert row.prompt + row.completions[0][:-1] != encoder.encode(["Answer: yes"])[0]


def test_gpt2_boundaries(gpt2):
    encoder = Encoder(gpt2)
    clean, shifted = encoder.rows([draft("Answer:", " yes"), draft("Answer: ", "yes")])
    assert [gpt2.decode(t) for t in clean.prompt] == ["Answer", ":"]
    assert [gpt2.decode(t) for t in clean.completions[0]] == [" yes", "<|endoftext|>"]
    assert [gpt2.decode(t) for t in shifted.prompt] == ["Answer", ":", " "]
    assert [gpt2.decode(t) for t in shifted.completions[0]] == ["yes", "<|endoftext|>"]


def test_no_space_is_put_into_the_middle(spaced):
    encoder = Encoder(spaced)
    (row,) = encoder.rows([draft("Answer: forty", "-two")])
    assert encoder.decode(row.prompt[1:] + row.completions[0][:-1]) == "Answer: forty-two"


def test_bos_stands_in_front_once(spaced):
    encoder = Encoder(spaced)
    assert encoder.bos == [spaced.bos_token_id]
    rows = encoder.rows(
        [
            draft("Answer:", " yes"),
            draft("<s>Answer:", " yes"),
            draft("", "yes"),
            draft("x", " y", plain=False),
        ]
    )
    assert [row.prompt[:2].count(spaced.bos_token_id) for row in rows] == [1, 1, 0, 0]
    # Without a prompt, BOS is what the first token is told from; it is not learned itself.
    assert rows[2].completions[0][0] == spaced.bos_token_id
    assert rows[2].weights[0][:2] == [0.0, 1.0]


def test_gpt2_has_a_bos_but_puts_none(gpt2):
    assert Encoder(gpt2).bos == []


def test_pieces_carry_their_weights(chat):
    encoder = Encoder(chat)
    reply, turn, again = "yes<|im_end|>", "\n<|im_start|>user\nno<|im_end|>\n", "maybe<|im_end|>"
    (row,) = encoder.rows([draft("<|im_start|>", ((reply, 1.0), (turn, 0.0), (again, 0.5)), plain=False)])
    learned = [t for t, w in zip(row.completions[0], row.weights[0], strict=True) if w == 1]
    half = [t for t, w in zip(row.completions[0], row.weights[0], strict=True) if w == 0.5]
    assert chat.decode(learned) == reply
    assert chat.decode(half) == again
    assert chat.decode(row.completions[0]) == reply + turn + again


def test_messages_that_merge_are_refused(spaced):
    # A template that puts nothing between messages: "two" is one token, and pieces alone gain a space.
    (row,) = Encoder(spaced).rows([draft("forty-t", (("w", 1.0), ("o", 0.0), (" yes", 1.0)), plain=False)])
    assert isinstance(row, BadRow)
    assert "here: the tokenizer merges text across the end of a message" in str(row)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prompt=st.text(max_size=30), completion=st.text(min_size=1, max_size=30))
def test_no_text_is_lost_or_made(byte_level, prompt, completion):
    encoder = Encoder(byte_level)
    (row,) = encoder.rows([draft(prompt, completion)])
    ids = row.completions[0]
    assert encoder.decode(row.prompt) == prompt
    whole = encoder.decode(row.prompt + ids)
    assert whole == prompt + completion + "<|end|>"
    assert row.prompt == encoder.encode([prompt])[0]


@given(st.lists(st.integers(0, 3)), st.lists(st.integers(0, 3)))
def test_common_prefix(a, b):
    n = common_prefix(a, b)
    assert a[:n] == b[:n]
    assert a[: n + 1] != b[: n + 1] or n == min(len(a), len(b))


@pytest.mark.parametrize("texts", [[], [""], ["", "yes"]])
def test_empty_texts_have_no_tokens(plain, texts):
    assert [len(ids) > 0 for ids in Encoder(plain).encode(texts)] == [bool(text) for text in texts]
