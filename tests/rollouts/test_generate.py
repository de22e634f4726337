"""Text from a model: batches equal single prompts, modes and random state are left alone."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lit_align.models.build import build_causal_lm
from lit_align.models.tokenizers import load_tokenizer
from lit_align.rollouts.generate import encode_prompt, generate_text, left_pad
from lit_align.scoring.policy import Policy

PROMPTS = ["Hello", "Where is my order, please? It was to come on Monday.", "What is 12 + 7?"]


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("lit-align/tiny")


@pytest.fixture
def model(tokenizer) -> LlamaForCausalLM:
    """Random and sharp, so that another context gives another text."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.5,
    )
    return LlamaForCausalLM(config).eval()


def test_a_batch_says_what_its_prompts_say_alone(model, tokenizer) -> None:
    options = {"max_new_tokens": 12, "temperature": 0.0}
    batch = generate_text(model, tokenizer, PROMPTS, batch_size=3, **options)
    alone = [generate_text(model, tokenizer, [prompt], **options)[0] for prompt in PROMPTS]
    assert batch == alone
    assert len(set(batch)) == 3


def test_greedy_is_the_most_probable_token_each_time(model, tokenizer) -> None:
    ids = encode_prompt(tokenizer, "Hello")
    expected: list[int] = []
    with torch.no_grad():
        for _ in range(8):
            logits = model(torch.tensor([ids + expected]), use_cache=False).logits
            expected.append(int(logits[0, -1].argmax()))
            if expected[-1] == tokenizer.eos_token_id:
                break
    found = generate_text(model, tokenizer, ["Hello"], max_new_tokens=8, temperature=0.0)
    assert found == [tokenizer.decode(expected, skip_special_tokens=True)]


def test_right_under_gradient_checkpointing_in_training_mode(model, tokenizer) -> None:
    expected = generate_text(model, tokenizer, PROMPTS, max_new_tokens=12, temperature=0.0)
    model.activation_checkpointing_enable()
    model.config.use_cache = False
    model.train()
    assert generate_text(model, tokenizer, PROMPTS, max_new_tokens=12, temperature=0.0) == expected
    assert model.training
    assert all(layer.gradient_checkpointing for layer in model.model.layers)


def test_modes_are_restored_module_by_module(model, tokenizer) -> None:
    model.train()
    model.lm_head.eval()
    before = [module.training for module in model.modules()]
    assert len(set(before)) == 2
    generate_text(model, tokenizer, ["Hello"], max_new_tokens=2)
    assert [module.training for module in model.modules()] == before


def test_the_seed_decides_and_nothing_else(model, tokenizer) -> None:
    options = {"max_new_tokens": 12, "temperature": 1.5}
    first = generate_text(model, tokenizer, PROMPTS, seed=1, **options)
    torch.rand(7)
    assert generate_text(model, tokenizer, PROMPTS, seed=1, **options) == first
    assert generate_text(model, tokenizer, PROMPTS, seed=2, **options) != first


@pytest.mark.parametrize("kind", ["model", "policy"])
def test_the_size_of_a_batch_changes_nothing(model, tokenizer, kind) -> None:
    asked = Policy(model) if kind == "policy" else model
    options = {"max_new_tokens": 12, "temperature": 1.5, "seed": 1}
    expected = generate_text(model, tokenizer, PROMPTS, **options)
    assert generate_text(asked, tokenizer, PROMPTS, batch_size=1, **options) == expected
    assert generate_text(asked, tokenizer, PROMPTS, batch_size=2, **options) == expected


def test_a_model_keeps_its_blocks(model, tokenizer) -> None:
    before = [type(module) for module in model.modules()]
    generate_text(model, tokenizer, PROMPTS, max_new_tokens=2)
    assert [type(module) for module in model.modules()] == before


def test_global_randomness_is_untouched(model, tokenizer) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    generate_text(model, tokenizer, ["Hello"], max_new_tokens=4)
    assert torch.equal(torch.rand(3), expected)


def test_the_models_own_sampling_defaults_do_not_leak_in(model, tokenizer) -> None:
    options = {"max_new_tokens": 12, "temperature": 1.5, "seed": 3}
    expected = generate_text(model, tokenizer, PROMPTS, **options)
    model.generation_config.top_k = 1
    model.generation_config.repetition_penalty = 5.0
    assert generate_text(model, tokenizer, PROMPTS, **options) == expected


def test_conversations_go_through_the_template(tokenizer) -> None:
    turns = [{"role": "user", "content": "Hello"}]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert tokenizer.decode(encode_prompt(tokenizer, turns)) == text
    assert encode_prompt(tokenizer, turns) != encode_prompt(tokenizer, "Hello")


def test_left_pad() -> None:
    ids, mask = left_pad([[5], [6, 7, 8]], 0, torch.device("cpu"))
    assert ids.tolist() == [[0, 0, 5], [6, 7, 8]]
    assert mask.tolist() == [[0, 0, 1], [1, 1, 1]]


def test_the_shipped_model_answers_within_its_limit(tokenizer) -> None:
    model = build_causal_lm("lit-align/tiny")
    (text,) = generate_text(model, tokenizer, [[{"role": "user", "content": "Hello"}]], max_new_tokens=5)
    assert 0 < len(tokenizer(text)["input_ids"]) <= 6


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"temperature": -1.0}, "temperature is -1"),
        ({"top_p": 0.0}, "top_p is 0"),
        ({"top_k": -1}, "top_k is -1"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_arguments_out_of_range(model, tokenizer, options, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        generate_text(model, tokenizer, ["Hello"], **options)


def test_empty_and_impossible_prompts(model, tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        generate_text(model, tokenizer, ["Hello", ""])
    monkeypatch.setattr(tokenizer, "chat_template", None)
    with pytest.raises(ValueError, match="no chat template"):
        generate_text(model, tokenizer, [[{"role": "user", "content": "Hello"}]])
    assert generate_text(model, tokenizer, []) == []
