"""transformers' loop with our choice of tokens: greedy text is its own, and the contract holds."""

import copy

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

from lit_align.rollouts.generator import Generator
from lit_align.rollouts.sampling import Sampling
from lit_align.rollouts.transformers_generator import TransformersGenerator
from lit_align.scoring.policy import Policy

PROMPTS = [[5, 6, 7, 8, 9], [11], [12, 13, 14]]
ENDS = 2
SEEDS = [101, 102, 103, 104, 105, 106]


@pytest.fixture
def policy() -> Policy:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=31,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.5,
        eos_token_id=ENDS,
        attention_dropout=0.5,
    )
    return Policy(LlamaForCausalLM(config)).train()


def test_it_is_a_generator():
    assert isinstance(TransformersGenerator(), Generator)


def test_greedy_is_what_generate_writes(policy):
    forest = TransformersGenerator().generate(
        policy, None, PROMPTS, completions=1, sampling=Sampling(12, temperature=0), seeds=[0, 0, 0]
    )
    model = copy.deepcopy(policy.model).eval()
    for (prompt, completion, weights), given in zip(forest.sequences(), PROMPTS, strict=True):
        expected = model.generate(torch.tensor([given]), do_sample=False, max_new_tokens=12)
        assert prompt == given
        assert completion == expected[0, len(given) :].tolist()
        assert weights == [1.0] * len(completion)


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_log_probs_are_those_of_the_policy(policy, temperature):
    sampling = Sampling(12, temperature=temperature, top_k=5, repetition_penalty=1.3)
    forest = TransformersGenerator(4).generate(
        policy, None, PROMPTS, completions=2, sampling=sampling, seeds=SEEDS
    )
    policy.eval()
    with torch.no_grad():
        expected = policy(forest, temperature=temperature or 1.0).logps
    torch.testing.assert_close(forest.token_columns["old_logps"], expected, rtol=1e-4, atol=1e-5)


def test_a_completion_depends_on_its_own_seed_alone(policy):
    sampling = Sampling(10, temperature=1.2, shortest_limit=3)
    together = TransformersGenerator(4).generate(
        policy, None, PROMPTS, completions=2, sampling=sampling, seeds=SEEDS
    )
    completions = [completion for _, completion, _ in together.sequences()]
    assert len({tuple(ids) for ids in completions}) > 3
    for c, seed in enumerate(SEEDS):
        alone = TransformersGenerator().generate(
            policy, None, [PROMPTS[c // 2]], completions=1, sampling=sampling, seeds=[seed]
        )
        assert alone.completion_ids.tolist() == completions[c]


def test_values_are_those_of_the_states(policy):
    head = nn.Sequential(nn.Linear(16, 1), nn.Flatten(0))
    forest = TransformersGenerator(4).generate(
        policy, None, PROMPTS, completions=2, sampling=Sampling(6), seeds=SEEDS, value_head=head
    )
    expected = []
    policy.eval()
    for prompt, completion, _ in forest.sequences():
        with torch.no_grad():
            states = policy.model.model(torch.tensor([prompt + completion])).last_hidden_state[0]
            expected.append(head(states[len(prompt) - 1 : -1]))
    torch.testing.assert_close(forest.token_columns["values"], torch.cat(expected), rtol=1e-4, atol=1e-5)


def test_finished_and_limits(policy):
    sampling = Sampling(20, temperature=2.0)
    forest = TransformersGenerator().generate(
        policy, None, PROMPTS, completions=2, sampling=sampling, seeds=SEEDS
    )
    ends = [completion[-1] == ENDS for _, completion, _ in forest.sequences()]
    assert forest.completion_columns["finished"].tolist() == ends
    assert True in ends
    assert all(done or length == 20 for done, length in zip(ends, forest.completion_lengths, strict=True))


def test_modes_and_random_state_are_left_alone(policy):
    policy.model.lm_head.eval()
    before = [module.training for module in policy.modules()]
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    TransformersGenerator().generate(policy, None, [[5]], completions=1, sampling=Sampling(3), seeds=[1])
    assert torch.equal(torch.rand(3), expected)
    assert [module.training for module in policy.modules()] == before


def test_the_models_own_options_do_not_leak_in(policy):
    def sample():
        sampling = Sampling(12, temperature=1.5)
        return TransformersGenerator().generate(
            policy, None, PROMPTS, completions=2, sampling=sampling, seeds=SEEDS
        )

    expected = sample().completion_ids
    policy.model.generation_config.no_repeat_ngram_size = 1
    policy.model.generation_config.suppress_tokens = [int(expected[0])]
    assert torch.equal(sample().completion_ids, expected)
    assert policy.model.generation_config.no_repeat_ngram_size == 1


def test_an_encoder_reads_the_prompt():
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=31,
        d_model=16,
        d_kv=4,
        d_ff=32,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
        eos_token_id=1,
        initializer_factor=3.0,
    )
    model = T5ForConditionalGeneration(config).eval()
    head = nn.Sequential(nn.Linear(16, 1), nn.Flatten(0))
    forest = TransformersGenerator().generate(
        Policy(model),
        None,
        PROMPTS,
        completions=1,
        sampling=Sampling(8, temperature=0),
        seeds=[0, 0, 0],
        value_head=head,
    )
    values, logps = [], []
    for (prompt, completion, _), given in zip(forest.sequences(), PROMPTS, strict=True):
        written = model.generate(torch.tensor([given]), do_sample=False, max_new_tokens=8)[0]
        assert prompt == given
        assert completion == written[1:].tolist()
        with torch.no_grad():
            output = model(
                torch.tensor([given]), decoder_input_ids=written[None, :-1], output_hidden_states=True
            )
        values.append(head(output.decoder_hidden_states[-1][0]))
        logps.append(output.logits[0].log_softmax(-1).gather(1, written[1:, None])[:, 0])
    assert len(set(forest.completion_ids.tolist())) == 3
    torch.testing.assert_close(forest.token_columns["values"], torch.cat(values).detach())
    torch.testing.assert_close(forest.token_columns["old_logps"], torch.cat(logps), rtol=1e-4, atol=1e-5)


def test_requests_that_cannot_be_served(policy):
    def ask(prompts, seeds, completions=1):
        TransformersGenerator().generate(
            policy, None, prompts, completions=completions, sampling=Sampling(2), seeds=seeds
        )

    with pytest.raises(ValueError, match="prompt 1 is empty"):
        ask([[5], []], [1, 2])
    with pytest.raises(ValueError, match="1 seeds for 1 prompts with 2 completions"):
        ask([[5]], [1], 2)
    with pytest.raises(ValueError, match="completions is 0"):
        ask([[5]], [], 0)
    with pytest.raises(ValueError, match="max_rows is 0"):
        TransformersGenerator(0)
