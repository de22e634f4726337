from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lit_align.datamodules.preference import common_messages, common_text
from lit_align.datamodules.tokenize import Draft, Encoder


def say(role, content):
    return {"role": role, "content": content}


USER, YES, NO = say("user", "Well?"), say("assistant", "Yes."), say("assistant", "No.")


def test_messages_share_what_stands_before_the_reply():
    assert common_messages([USER, YES], [USER, NO]) == 1
    assert common_messages([USER, YES, USER, YES], [USER, YES, USER, NO]) == 3
    # One conversation goes on where the other ends: the last common reply is the reply.
    assert common_messages([USER, YES], [USER, YES, USER, NO]) == 1
    assert common_messages([YES], [NO]) == 0


def test_a_user_turn_is_never_the_reply():
    other = say("user", "Really?")
    assert common_messages([USER, YES, USER, YES], [USER, YES, other, NO]) == 1


def cut(chosen, rejected, tokenizer, **options):
    n = common_text(chosen, rejected, Encoder(tokenizer), **options)
    return chosen[:n], chosen[n:], rejected[n:]


def test_the_space_goes_with_the_word_behind_it(plain):
    assert cut("Q? Answer: yes", "Q? Answer: no", plain) == ("Q? Answer:", " yes", " no")


def test_words_are_not_cut(plain):
    assert cut("Say nowhere.", "Say now.", plain) == ("Say", " nowhere.", " now.")
    assert cut("Say it isn't", "Say it isn", plain) == ("Say it", " isn't", " isn")


def test_line_breaks_stay_with_the_prompt(plain):
    assert cut("user\nyes", "user\nno", plain) == ("user\n", "yes", "no")


def test_scripts_without_spaces_are_cut_between_characters(plain):
    assert cut("你好吗我很好", "你好吗我不好", plain) == ("你好吗我", "很好", "不好")


def test_nothing_in_common(plain):
    assert cut("yes", "no", plain) == ("", "yes", "no")


def test_a_beginning_of_the_other_is_an_empty_completion(plain):
    assert cut("I think so", "I think so because", plain) == ("I think so", "", " because")


def test_the_end_of_prompts_can_be_named(plain):
    chosen, rejected = "Human: hi\n\nAssistant: I am fine", "Human: hi\n\nAssistant: I am not"
    assert cut(chosen, rejected, plain)[0] == "Human: hi\n\nAssistant: I am"
    assert cut(chosen, rejected, plain, prompt_end="\n\nAssistant:") == (
        "Human: hi\n\nAssistant:",
        " I am fine",
        " I am not",
    )


def test_gpt2_merges_line_breaks_only_at_the_end_of_a_text(gpt2):
    # "\n\n" before a word is two tokens, at the end of a text it is one: the cut moves in front of both.
    encoder = Encoder(gpt2)
    assert encoder.encode(["a\n\nB"])[0] != encoder.encode(["a\n\n"])[0] + encoder.encode(["B"])[0]
    prompt, chosen, rejected = cut("a\n\nB", "a\n\nC", gpt2)
    assert (prompt, chosen, rejected) == ("a", "\n\nB", "\n\nC")


text = st.text(alphabet=st.sampled_from("ab .\n'é你🙂"), max_size=15)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shared=text, chosen=text, rejected=text)
def test_prompt_and_completions_give_the_texts_back(byte_level, shared, chosen, rejected):
    encoder = Encoder(byte_level)
    first, second = shared + chosen, shared + rejected
    n = common_text(first, second, encoder)
    assert first[:n] == second[:n]
    draft = Draft(0, "here", first[:n], (((first[n:], 1.0),), ((second[n:], 1.0),)), True, {})
    (row,) = encoder.rows([draft])
    for ids, whole in zip(row.completions, (first, second), strict=True):
        assert encoder.decode(row.prompt + ids) == whole + "<|end|>"
        # No boundary moved: the pieces are the tokens of the whole.
        assert row.prompt + ids[:-1] == encoder.encode([whole])[0]
