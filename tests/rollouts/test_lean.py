"""The lean step gives the states of the decoder's own forward, and steps aside where it would not."""

import copy

import pytest
import torch

from lit_align.models.build import build_causal_lm
from lit_align.models.config import LoraConfig, ModelConfig
from lit_align.rollouts import decoding, lean_parts
from lit_align.rollouts.lean import LeanDecoder, lean_decoder, same_states
from lit_align.rollouts.native import NativeGenerator
from lit_align.rollouts.sampling import Sampling
from lit_align.rollouts.slots import PromptStates, Slots
from lit_align.scoring.attention import bringing, install
from lit_align.scoring.policy import Policy
from tests.scoring.architectures import FLAT, GROUPED, build

KINDS = ["llama", "mistral", "qwen2", "qwen3"]


def both(model):
    """One step of three rows, by the lean decoder and by the model: states ``[3, D]`` of each."""
    install(model)
    trunk = model.base_model
    config = model.config
    heads, size = config.num_key_value_heads, trunk.layers[0].self_attn.head_dim
    slots = Slots(4, 12, torch.device("cpu"))
    for seed, length in enumerate((3, 7, 5)):
        generator = torch.Generator().manual_seed(seed)
        keys, values = (
            [torch.randn(heads, length, size, generator=generator).to(model.dtype) for _ in trunk.layers]
            for _ in range(2)
        )
        slots.fill(PromptStates(keys, values, torch.zeros(config.hidden_size)), 1)
    positions = slots.advance()
    ids = torch.tensor([9, 4, 30])
    step = lean_decoder(trunk, 12)
    assert step is not None
    with torch.no_grad():
        ours = step(ids, positions, slots)
        theirs = trunk(
            input_ids=ids[:, None],
            attention_mask=bringing(slots.attend, torch.device("cpu")),
            position_ids=positions[:, None],
            past_key_values=slots,
            use_cache=True,
        ).last_hidden_state[:, 0]
    return ours, theirs


@pytest.mark.parametrize("kind", KINDS)
def test_states_are_the_models(kind):
    ours, theirs = both(build(kind, FLAT[kind]))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_lower_precision_rounds_where_the_model_does(kind):
    """Norms, products and sums one by one, as the policy is trained: equal to a few bits of bf16."""
    ours, theirs = both(build(kind, FLAT[kind]).to(torch.bfloat16))
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize(
    "rope", [{"rope_type": "linear", "factor": 2.0}, {"rope_type": "yarn", "factor": 4.0}]
)
def test_scaled_rotations(rope):
    model = build("llama", GROUPED | {"rope_parameters": {"rope_theta": 10000.0, **rope}})
    ours, theirs = both(model)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("extra", [{}, {"dora": True}, {"bias": "lora_only"}])
def test_adapters(extra):
    """A plain LoRA is written out; one with more to it is called."""
    lora = LoraConfig(r=4, **extra, extra={"init_lora_weights": False})
    settings = {"model_type": "llama", "initializer_range": 0.3, **GROUPED}
    model = build_causal_lm(ModelConfig(architecture=settings, lora=lora))
    product = lean_parts.product(model.get_base_model().model.layers[0].mlp.up_proj)
    assert isinstance(product, torch.nn.Module) == ("dora" in extra)
    ours, theirs = both(model.get_base_model())
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    with model.disable_adapter():
        bare, theirs = both(model.get_base_model())
        torch.testing.assert_close(bare, theirs, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(bare, ours)


def test_who_is_left_alone():
    assert lean_decoder(build("gpt2", FLAT["gpt2"]).base_model, 9) is None
    assert lean_decoder(build("gemma", FLAT["gemma"]).base_model, 9) is None
    model = build("llama", GROUPED)
    assert isinstance(lean_decoder(model.base_model, 9), LeanDecoder)
    with torch.autocast("cpu", torch.bfloat16):
        assert lean_decoder(model.base_model, 9) is None
    listener = model.base_model.layers[1].register_forward_hook(lambda *_: None)
    assert lean_decoder(model.base_model, 9) is None
    listener.remove()
    # What the library itself leaves behind is no listener.
    model(torch.tensor([[5, 6]]), output_hidden_states=True)
    model.enable_input_require_grads()
    assert any(module._forward_hooks for module in model.modules())
    assert isinstance(lean_decoder(model.base_model, 9), LeanDecoder)
    dynamic = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    assert lean_decoder(build("llama", GROUPED | {"rope_parameters": dynamic}).base_model, 9) is None


def test_a_step_that_differs_is_not_used(monkeypatch, caplog):
    """As if the library had changed what the layer does."""
    policy = Policy(build("llama", GROUPED))
    request = {"completions": 2, "sampling": Sampling(8), "seeds": [1, 2]}
    expected = NativeGenerator().generate(policy, None, [[5, 6]], **request)
    calls = []

    def changed(trunk, length):
        step = lean_decoder(trunk, length)

        def wrong(*arguments):
            calls.append(arguments)
            return step(*arguments) * 1.1

        return wrong

    monkeypatch.setattr(decoding, "lean_decoder", changed)
    generator = NativeGenerator()
    for _ in range(2):
        found = generator.generate(policy, None, [[5, 6]], **request)
        assert torch.equal(found.completion_ids, expected.completion_ids)
    assert len(calls) == 1
    assert caplog.text.count("lean decoding step differs") == 1


def test_weights_that_were_trained_meanwhile_are_used():
    policy = Policy(build("llama", GROUPED))
    generator = NativeGenerator()
    request = {"completions": 1, "sampling": Sampling(8, temperature=0), "seeds": [1]}
    generator.generate(policy, None, [[5, 6]], **request)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    found = generator.generate(policy, None, [[5, 6]], **request)
    again = NativeGenerator().generate(Policy(copy.deepcopy(policy.model)), None, [[5, 6]], **request)
    assert torch.equal(found.completion_ids, again.completion_ids)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_wrong_row_is_seen_beside_an_outlying_feature(dtype):
    """Trained models have features a hundred times as large as the others."""
    own = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    own = own.clamp(-0.9, 0.9)
    own[:, 5] = 40.0
    wrong = own.clone()
    wrong[1] = -own[1]
    wrong[1, 5] = 40.0
    assert same_states(own.to(dtype), own.to(dtype))
    assert not same_states(wrong.to(dtype), own.to(dtype))


@pytest.mark.parametrize("kind", KINDS)
def test_rounding_is_no_reason_to_step_aside(kind):
    assert same_states(*both(build(kind, FLAT[kind]).bfloat16()))
