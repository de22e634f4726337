"""Tokenizers: where they come from, and the faults that are found before a run is spoilt."""

import logging
import re

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from lit_align.models.build import build_causal_lm
from lit_align.models.config import ModelConfig
from lit_align.models.tokenizers import check_tokenizer, choose_pad, load_tokenizer, missing_stop

WORDS = ["<unk>", "</s>", "<s>", "<|im_end|>", "<|reserved_0|>", "<|my_pad|>", "hello", "you"]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }} {{ m.content }}"
    "{% if m.role == 'assistant' %} STOP{% endif %} {% endfor %}"
)


def tokenizer(special: list[str], **named: str) -> PreTrainedTokenizerFast:
    inner = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    inner.pre_tokenizer = WhitespaceSplit()
    made = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", **named)
    made.add_special_tokens({"additional_special_tokens": special})
    return made


@pytest.mark.parametrize(
    ("special", "named", "expected"),
    [
        (["<|my_pad|>", "<|reserved_0|>"], {"unk_token": "<unk>"}, "<|my_pad|>"),
        (["<|reserved_0|>"], {"unk_token": "<unk>"}, "<unk>"),
        (["<|reserved_0|>", "<|im_end|>"], {}, "<|reserved_0|>"),
        # A chat marker is a special token that texts do contain: it must not be the padding.
        (["<|im_end|>"], {}, "</s>"),
        (["<|im_end|>"], {"unk_token": "</s>"}, "</s>"),
    ],
)
def test_a_missing_pad_is_chosen_and_said(special, named, expected, caplog):
    made = tokenizer(special, **named)
    assert choose_pad(made) == made.pad_token == expected
    assert len(made) == len(WORDS), "no token may be added: the embeddings have no row for it"
    assert f"padding with {expected!r}" in caplog.text
    assert ("EOS itself" in caplog.text) == (expected == "</s>")


def test_a_pad_that_is_there_stays_and_is_not_mentioned(architecture, caplog):
    made = tokenizer(["<|my_pad|>"], pad_token="<|reserved_0|>")
    check_tokenizer(made, ModelConfig(architecture=architecture))
    assert made.pad_token == "<|reserved_0|>"
    assert not caplog.records


def test_the_choice_is_said_once(architecture, caplog):
    made, model = tokenizer([]), build_causal_lm(architecture)
    check_tokenizer(made, model)
    check_tokenizer(made, model)
    assert len(caplog.records) == 1


def test_a_tokenizer_without_any_special_token_is_refused():
    made = tokenizer([])
    made.eos_token = None
    with pytest.raises(ValueError, match="set pad_token"):
        choose_pad(made)


@pytest.mark.parametrize("what", ["model", "adapted", "library configuration", "description"])
def test_more_tokens_than_embeddings_is_an_error(architecture, what):
    architecture["vocab_size"] = 7
    config = ModelConfig(architecture=architecture, lora={"r": 2} if what == "adapted" else None)
    model = config if what == "description" else build_causal_lm(config)
    model = model.config if what == "library configuration" else model
    with pytest.raises(
        ValueError, match=r"8 tokens with ids up to 7.*embeddings for 7.*resize_token_embeddings\(8\)"
    ):
        check_tokenizer(tokenizer([], pad_token="<unk>"), model)


def test_embeddings_may_have_spare_rows(architecture):
    architecture["vocab_size"] = 8
    check_tokenizer(tokenizer([], pad_token="<unk>"), build_causal_lm(architecture))


@pytest.mark.parametrize(
    ("stop", "complaint"),
    [
        ("</s>", None),
        (
            "<|im_end|>",
            r"ends the assistant's turn with '<\|im_end\|>'.*tokenizer.eos_token = '<\|im_end\|>'",
        ),
        ("you", "writes no EOS"),
        ("", "writes no EOS"),
    ],
)
def test_a_template_must_write_the_eos(stop, complaint):
    made = tokenizer(["<|im_end|>"])
    made.chat_template = CHATML.replace("STOP", stop)
    said = missing_stop(made)
    if complaint is None:
        assert said is None
    else:
        assert re.search(complaint, said)


def test_a_stop_token_of_the_generation_config_counts(architecture, caplog):
    made = tokenizer(["<|im_end|>"], pad_token="<unk>")
    made.chat_template = CHATML.replace("STOP", "<|im_end|>")
    model = build_causal_lm(architecture)
    check_tokenizer(made, model)
    assert "never with the EOS" in caplog.text
    caplog.clear()
    model.generation_config.eos_token_id = [1, 3]
    check_tokenizer(made, model)
    assert not caplog.records


def test_an_eos_in_the_users_turn_does_not_count():
    made = tokenizer([])
    made.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' %}</s>{% endif %}{{ m.content }}{% endfor %}"
    )
    assert "writes no EOS" in missing_stop(made)


def test_a_template_that_refuses_is_reported_not_hidden():
    made = tokenizer([])
    made.chat_template = "{{ raise_exception('tools only') }}"
    assert "tools only" in missing_stop(made)


def test_where_a_tokenizer_comes_from(tmp_path, architecture, caplog):
    made = tokenizer([], pad_token="<unk>")
    made.save_pretrained(tmp_path)
    assert load_tokenizer(made) is made
    assert load_tokenizer(str(tmp_path)).get_vocab() == made.get_vocab()
    assert load_tokenizer(ModelConfig(str(tmp_path))).get_vocab() == made.get_vocab()
    shipped = load_tokenizer("lit-align/tiny")
    assert shipped.pad_token_id != shipped.eos_token_id
    assert missing_stop(shipped) is None
    with pytest.raises(ValueError, match="has no tokenizer; give one"):
        load_tokenizer(ModelConfig(architecture=architecture))
    with pytest.raises(TypeError, match="not int"):
        load_tokenizer(3)
    with caplog.at_level(logging.WARNING):
        load_tokenizer(str(tmp_path), trust_remote_code=True)
    assert "trust_remote_code" in caplog.text


def test_a_directory_without_a_tokenizer_says_so(tmp_path):
    with pytest.raises(ValueError, match=f"no tokenizer could be loaded from {tmp_path}"):
        load_tokenizer(str(tmp_path))
