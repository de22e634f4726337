"""The native generator: greedy text is that of ``generate``, samples are those of transformers' loop."""

import copy
import pickle

import pytest
import torch
from torch import nn

from lit_align.models.build import build_causal_lm
from lit_align.models.config import LoraConfig, ModelConfig, QuantizationConfig
from lit_align.models.tokenizers import load_tokenizer
from lit_align.rollouts.generator import Generator
from lit_align.rollouts.native import NativeGenerator
from lit_align.rollouts.sampling import Sampling
from lit_align.rollouts.transformers_generator import TransformersGenerator
from lit_align.scoring.policy import Policy
from tests.scoring.architectures import FLAT, GROUPED, PADDED, build

PROMPTS = [[5, 6, 7, 8, 9], [11], [12, 13, 14], [15, 16, 17, 18, 19, 20, 21], [22, 23], [24]]


def seeds(count):
    return list(range(1000, 1000 + count))


def same(ours, theirs):
    """Two forests, token for token, and their numbers."""
    assert ours.completion_lengths == theirs.completion_lengths
    assert torch.equal(ours.completion_ids, theirs.completion_ids)
    assert torch.equal(ours.prompt_ids, theirs.prompt_ids)
    assert ours.parents == theirs.parents
    found, expected = ours.completion_columns["finished"], theirs.completion_columns["finished"]
    assert torch.equal(found, expected)
    assert set(ours.token_columns) == set(theirs.token_columns)
    for name, column in ours.token_columns.items():
        torch.testing.assert_close(column, theirs.token_columns[name], rtol=1e-3, atol=1e-4)


def greedy(policy, max_rows, length=20):
    return NativeGenerator(max_rows, prefill_tokens=8).generate(
        policy, None, PROMPTS, completions=1, sampling=Sampling(length, temperature=0), seeds=seeds(6)
    )


def assert_greedy(model, forest, length=20):
    model = copy.deepcopy(model).eval()
    for prompt, completion, _ in forest.sequences():
        given = torch.tensor([prompt])
        expected = model.generate(
            input_ids=given, attention_mask=torch.ones_like(given), do_sample=False, max_new_tokens=length
        )
        assert completion == expected[0, len(prompt) :].tolist()


def test_it_is_a_generator():
    assert isinstance(NativeGenerator(), Generator)


@pytest.mark.parametrize("kind", sorted(FLAT))
def test_greedy_is_what_generate_writes(kind, monkeypatch):
    model = build(kind, FLAT[kind])
    policy = Policy(copy.deepcopy(model))
    monkeypatch.setattr(TransformersGenerator, "generate", None)
    # Three rows for six completions, so that rows end, move, and are filled again.
    forest = greedy(policy, max_rows=3)
    assert_greedy(model, forest)


OPTIONS = {
    "plain": {},
    "cold": {"temperature": 0.6},
    "cuts": {"temperature": 1.4, "top_k": 20, "top_p": 0.9, "min_p": 0.02},
    "penalty": {"repetition_penalty": 1.5},
    "lengths": {"shortest_limit": 3, "min_new_tokens": 2, "stop_token_ids": [7, 9]},
    "greedy": {"temperature": 0.0, "repetition_penalty": 1.2},
}


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_samples_are_those_of_the_other_generator(name):
    """Two programs that share nothing but the choice of a token."""
    policy = Policy(build("qwen2", FLAT["qwen2"])).train()
    head = nn.Sequential(nn.Linear(16, 1), nn.Flatten(0))
    request = {
        "completions": 3,
        "sampling": Sampling(**{"max_new_tokens": 12, "temperature": 1.0} | OPTIONS[name]),
        "seeds": seeds(18),
        "value_head": head,
    }
    ours = NativeGenerator(5, prefill_tokens=6).generate(policy, None, PROMPTS, **request)
    theirs = TransformersGenerator(7).generate(policy, None, PROMPTS, **request)
    same(ours, theirs)
    assert len(set(ours.completion_lengths)) > 1 or name == "greedy"


@pytest.mark.parametrize("kind", ["gpt2", "mixtral", "opt"])
def test_log_probs_and_values_are_those_of_the_policy(kind):
    policy = Policy(build(kind, FLAT[kind]))
    head = nn.Sequential(nn.Linear(16, 1), nn.Flatten(0))
    forest = NativeGenerator(4).generate(
        policy, None, PROMPTS, completions=2, sampling=Sampling(8, top_k=9), seeds=seeds(12), value_head=head
    )
    with torch.no_grad():
        expected = policy(forest).logps
        values = []
        for prompt, completion, _ in forest.sequences():
            states = policy.model.base_model(torch.tensor([prompt + completion])).last_hidden_state[0]
            values.append(head(states[len(prompt) - 1 : -1]))
    torch.testing.assert_close(forest.token_columns["old_logps"], expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(forest.token_columns["values"], torch.cat(values), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("max_rows", [1, 2, 18, 64])
@pytest.mark.parametrize("prefill_tokens", [1, 4096])
def test_no_room_changes_a_completion(max_rows, prefill_tokens):
    policy = Policy(build("llama", GROUPED))
    request = {"completions": 3, "sampling": Sampling(10), "seeds": seeds(18)}
    ours = NativeGenerator(max_rows, prefill_tokens).generate(policy, None, PROMPTS, **request)
    same(ours, NativeGenerator(7, 9).generate(policy, None, PROMPTS, **request))


def test_a_completion_depends_on_its_own_seed_alone():
    policy = Policy(build("llama", GROUPED))
    forest = NativeGenerator().generate(
        policy, None, PROMPTS, completions=2, sampling=Sampling(10), seeds=seeds(12)
    )
    for c, (prompt, completion, _) in enumerate(forest.sequences()):
        alone = NativeGenerator().generate(
            policy, None, [prompt], completions=1, sampling=Sampling(10), seeds=[1000 + c]
        )
        assert alone.completion_ids.tolist() == completion


def test_stop_texts():
    tokenizer = load_tokenizer("lit-align/tiny")
    model = build("llama", GROUPED | {"vocab_size": len(tokenizer)})
    prompts = [tokenizer("Hello")["input_ids"], tokenizer("Where is my order?")["input_ids"]]
    request = {"completions": 4, "seeds": seeds(8)}
    free = NativeGenerator().generate(Policy(model), tokenizer, prompts, sampling=Sampling(20), **request)
    texts = [tokenizer.decode(completion) for _, completion, _ in free.sequences()]
    stop = [text[len(text) // 2 :][:2] for text in texts[::3]]
    ours = NativeGenerator(3).generate(
        Policy(model), tokenizer, prompts, sampling=Sampling(20, stop=stop), **request
    )
    for (_, completion, _), whole in zip(ours.sequences(), free.sequences(), strict=True):
        text = tokenizer.decode(completion)
        assert completion == whole[1][: len(completion)]
        assert any(word in text for word in stop) or completion == whole[1]
        assert not any(word in tokenizer.decode(completion[:-1]) for word in stop)
    assert sum(ours.completion_lengths) < sum(free.completion_lengths)


def test_adapters_are_part_of_the_policy():
    config = ModelConfig(
        architecture={"model_type": "llama", **GROUPED, "eos_token_id": 2, "initializer_range": 0.3},
        lora=LoraConfig(r=4, extra={"init_lora_weights": False}),
    )
    model = build_causal_lm(config)
    forest = greedy(Policy(model).train(), max_rows=3)
    assert_greedy(model, forest)
    with model.disable_adapter():
        bare = greedy(Policy(model), max_rows=3)
    assert not torch.equal(bare.completion_ids, forest.completion_ids)


def test_gradient_checkpointing_and_modes():
    policy = Policy(build("llama", GROUPED | {"attention_dropout": 0.5}))
    expected = greedy(policy, 3)
    policy.model.gradient_checkpointing_enable()
    policy.model.config.use_cache = False
    policy.train()
    policy.model.lm_head.eval()
    before = [module.training for module in policy.modules()]
    same(greedy(policy, 3), expected)
    assert [module.training for module in policy.modules()] == before


def test_bfloat16_runs_and_its_log_probs_are_wide():
    policy = Policy(build("llama", GROUPED).to(torch.bfloat16))
    forest = greedy(policy, 3)
    assert forest.token_columns["old_logps"].dtype == torch.float32
    policy.eval()
    with torch.no_grad():
        expected = policy(forest).logps
    torch.testing.assert_close(forest.token_columns["old_logps"], expected, rtol=0.1, atol=0.3)


def test_autocast():
    policy = Policy(build("llama", GROUPED))
    with torch.autocast("cpu", torch.bfloat16):
        forest = greedy(policy, 3)
        with torch.no_grad():
            expected = policy.eval()(forest).logps
    torch.testing.assert_close(forest.token_columns["old_logps"], expected, rtol=0.1, atol=0.3)


@pytest.mark.parametrize("kind", sorted(PADDED))
def test_others_fall_back(kind, caplog):
    caplog.set_level("INFO")
    model = build(kind, PADDED[kind])
    generator = NativeGenerator(3)
    request = {"completions": 1, "sampling": Sampling(9, temperature=0), "seeds": seeds(6)}
    for _ in range(2):
        forest = generator.generate(Policy(copy.deepcopy(model)), None, PROMPTS, **request)
    assert_greedy(model, forest, 9)
    assert caplog.text.count("written by transformers' own loop") == 1


def test_a_window_shorter_than_the_text_falls_back(caplog):
    caplog.set_level("INFO")
    model = build("mistral", GROUPED | {"sliding_window": 12})
    assert_greedy(model, greedy(Policy(copy.deepcopy(model)), 3, length=8), 8)
    assert "attends to 12 tokens, and a prompt with its completion may have 15" in caplog.text
    caplog.clear()
    assert_greedy(model, greedy(Policy(copy.deepcopy(model)), 3, length=5), 5)
    assert "own loop" not in caplog.text


def test_nothing_to_do():
    policy = Policy(build("llama", GROUPED))
    forest = NativeGenerator().generate(policy, None, [], completions=2, sampling=Sampling(), seeds=[])
    assert forest.num_completions == 0
    with pytest.raises(ValueError, match="prompt 0 is empty"):
        NativeGenerator().generate(policy, None, [[]], completions=1, sampling=Sampling(), seeds=[1])
    with pytest.raises(ValueError, match="prefill_tokens is 0"):
        NativeGenerator(prefill_tokens=0)


@pytest.mark.slow
def test_a_base_in_four_bits():
    pytest.importorskip("bitsandbytes")
    config = ModelConfig(
        path="lit-align/tiny",
        quantization=QuantizationConfig("nf4"),
        lora=LoraConfig(r=4, extra={"init_lora_weights": False}),
    )
    model = build_causal_lm(config)
    forest = greedy(Policy(model), 3, length=10)
    assert_greedy(model, forest, 10)


def test_the_first_rollout_has_the_bits_of_the_next():
    """A run that was cut off makes its next rollout with a new generator."""
    policy = Policy(build("llama", GROUPED))
    generator = NativeGenerator()
    rollouts = [
        generator.generate(policy, None, PROMPTS, completions=2, sampling=Sampling(12), seeds=seeds(12))
        for _ in range(2)
    ]
    first, second = rollouts
    assert torch.equal(first.completion_ids, second.completion_ids)
    assert torch.equal(first.token_columns["old_logps"], second.token_columns["old_logps"])


def test_a_generator_that_has_generated_can_be_pickled():
    """Lightning's strategies send a module to processes they spawn."""
    policy, generator = Policy(build("llama", GROUPED).eval()), NativeGenerator(max_rows=2)

    def write(by):
        return by.generate(
            policy, None, PROMPTS, completions=1, sampling=Sampling(4, temperature=0), seeds=seeds(6)
        )

    expected = write(generator)
    again = pickle.loads(pickle.dumps(generator))
    assert (again.max_rows, again.prefill_tokens) == (2, 4096)
    same(write(again), expected)
