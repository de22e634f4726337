import pytest

from lit_align import shipped

TURNS = [
    {"role": "system", "content": "Answer briefly."},
    {"role": "user", "content": "What is 27 plus 45?"},
    {"role": "assistant", "content": "It is 72."},
]


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(shipped.find("lit-align/tiny"))


def test_pad_and_eos_are_distinct_tokens(tokenizer):
    assert tokenizer.pad_token == "<|pad|>"
    assert tokenizer.eos_token == "<|end|>"
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert {tokenizer.pad_token_id, tokenizer.eos_token_id} <= set(tokenizer.all_special_ids)


def test_the_vocabulary_fits_the_embeddings(tokenizer):
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(shipped.find("lit-align/tiny"))
    assert len(tokenizer) == config.vocab_size
    assert (config.pad_token_id, config.eos_token_id) == (tokenizer.pad_token_id, tokenizer.eos_token_id)
    assert tokenizer.model_max_length == config.max_position_embeddings


@pytest.mark.parametrize(
    "text",
    [
        "Thank you. 27 + 45 = 72.",
        "  two  spaces\n\tand a tab ",
        "naïve – 漢字 🙂",
        "",
        "don't",
        "<b>&amp;</b>",
    ],
)
def test_round_trip(tokenizer, text):
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_digits_are_single_tokens(tokenizer):
    ids = tokenizer("2745").input_ids
    assert [tokenizer.decode([i]) for i in ids] == ["2", "7", "4", "5"]


def test_encoding_adds_nothing(tokenizer):
    assert tokenizer("7").input_ids == tokenizer("7", add_special_tokens=False).input_ids
    assert len(tokenizer("7").input_ids) == 1


def test_template_ends_every_turn_with_eos(tokenizer):
    text = tokenizer.apply_chat_template(TURNS, tokenize=False)
    assert text == (
        "<|system|>Answer briefly.<|end|><|user|>What is 27 plus 45?<|end|><|assistant|>It is 72.<|end|>"
    )


def test_template_of_a_prompt_is_a_prefix_of_the_conversation(tokenizer):
    prompt = tokenizer.apply_chat_template(TURNS[:2], add_generation_prompt=True, return_dict=False)
    whole = tokenizer.apply_chat_template(TURNS, return_dict=False)
    assert whole[: len(prompt)] == prompt
    assert tokenizer.decode(whole[len(prompt) :]) == "It is 72.<|end|>"


def test_template_refuses_a_role_it_does_not_know(tokenizer):
    with pytest.raises(Exception, match="system, user and assistant, not tool"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "72"}], tokenize=False)


def test_the_named_class_loads_it_too():
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(shipped.find("lit-align/tiny"))
    assert tokenizer.chat_template
    assert tokenizer("It is 72.").input_ids
