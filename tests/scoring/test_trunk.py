"""The fast forms of blocks against the library's own, for models that have them and models that do not."""

import copy
import pickle

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from lit_align.batches import Forest
from lit_align.outputs import LossOutput, Scores
from lit_align.scoring import leak, trunk
from lit_align.scoring.policy import Policy, RewardScorer

SMALL = {
    "vocab_size": 53,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "max_position_embeddings": 64,
}
ENDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
FAST = ["llama", "qwen2", "qwen3", "mistral", "gemma"]


def build(kind: str, auto=AutoModelForCausalLM, **more):
    torch.manual_seed(0)
    model = auto.from_config(AutoConfig.for_model(kind, **SMALL, **ENDS, **more))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(4) if p.ndim >= 2 else p.add_(0.3 * torch.randn_like(p))
    return model


def batch() -> Forest:
    """Several branches, an empty prompt, a prompt of one token, weights with holes in the middle."""
    ids = torch.arange(3, 53).tolist()
    return Forest.from_lists(
        [ids[:5], [], ids[7:8], ids[20:26]],
        [[ids[8:12], ids[30:31], ids[14:20]], [ids[1:8]], [ids[3:6], ids[9:14]], [ids[40:49]]],
        weights=[
            [[1, 1, 1, 1], [1], [0, 0, 1, 0, 1, 1]],
            [[1] * 7],
            [[0, 0, 0], [1] * 5],
            [[0, 1, 0, 0, 0, 1, 1, 0, 0]],
        ],
    )


def squares(scores: Scores, batch: Forest) -> LossOutput:
    sums = batch.sum_per_completion(scores.logps * batch.weights)
    return LossOutput((sums**2).sum(), torch.ones(()), {})


def gradients(policy: Policy) -> dict[str, torch.Tensor]:
    policy.zero_grad()
    policy(batch(), loss=squares).total.backward()
    return {name: p.grad.clone() for name, p in policy.named_parameters()}


@pytest.mark.parametrize("kind", FAST)
def test_fast_blocks_say_the_same(kind):
    """Log-probs and every gradient, in flat rows, against the padded rectangle of the untouched model."""
    model = build(kind)
    plain = Policy(copy.deepcopy(model), layout="padded")
    fast = Policy(model)
    assert fast.flat_layout(batch()) is not None
    forms = {module.form for module in model.modules() if isinstance(module, trunk._Fast)}
    assert {trunk._FastNorm, trunk._FastAttention, trunk._FastLastLayer} <= forms
    assert (trunk._FastMLP in forms) == (kind != "gemma")  # whose units are GELU
    assert all(m.fast for m in model.modules() if isinstance(m, trunk._Fast)), "the leak test took them back"
    assert not any(isinstance(module, trunk._Fast) for module in plain.modules())
    with torch.no_grad():
        torch.testing.assert_close(fast(batch()).logps, plain(batch()).logps, rtol=1e-5, atol=1e-5)
    ours, theirs = gradients(fast), gradients(plain)
    for name, expected in theirs.items():
        torch.testing.assert_close(ours[name], expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_only_the_rows_that_are_asked_for_leave_the_last_layer(kind):
    model = build(kind, AutoModelForSequenceClassification, num_labels=1)
    plain = RewardScorer(copy.deepcopy(model), layout="padded")
    fast = RewardScorer(model)
    seen = []
    layer = model.model.layers[-1].mlp
    layer.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[1]))
    with torch.no_grad():
        fast(batch())  # and the leak test before it
        seen.clear()
        ours = fast(batch())
    assert seen == [batch().num_completions]
    with torch.no_grad():
        torch.testing.assert_close(ours, plain(batch()), rtol=1e-5, atol=1e-5)


def test_checkpointed_layers_give_the_same_gradients():
    model = build("qwen2").train()
    once = gradients(Policy(copy.deepcopy(model)))
    model.gradient_checkpointing_enable({"use_reentrant": False})
    again = gradients(Policy(model))
    for name, expected in once.items():
        torch.testing.assert_close(again[name], expected)


@pytest.mark.parametrize("kind", ["olmo2", "gpt_neox", "mixtral"])
def test_other_attention_is_left_alone(kind):
    more = {"num_local_experts": 4} if kind == "mixtral" else {}
    model = build(kind, **more)
    trunk.install(model)
    forms = {module.form for module in model.modules() if isinstance(module, trunk._Fast)}
    assert not forms & {trunk._FastAttention, trunk._FastLastLayer}


def test_norms_are_known_by_what_they_compute():
    class HalfRMSNorm(LlamaRMSNorm):
        def forward(self, hidden_states):
            return super().forward(hidden_states) / 2

    class StrangeRMSNorm(nn.Module):
        pass

    assert trunk._norm_offset(LlamaRMSNorm) == 0.0
    assert trunk._norm_offset(GemmaRMSNorm) == 1.0
    assert trunk._norm_offset(HalfRMSNorm) is None
    assert trunk._norm_offset(StrangeRMSNorm) is None


def test_fast_blocks_that_differ_are_taken_back(monkeypatch):
    """As if the library had changed its attention: the model is scored flat, with the library's blocks."""
    model = build("llama")
    monkeypatch.setattr(trunk.Rotation, "apply", lambda x, cos, sin: x)
    policy = Policy(model)
    expected = Policy(copy.deepcopy(model), layout="padded")
    assert policy.flat_layout(batch()) is not None
    assert not any(m.fast for m in model.modules() if isinstance(m, trunk._Fast))
    with torch.no_grad():
        torch.testing.assert_close(policy(batch()).logps, expected(batch()).logps, rtol=1e-4, atol=1e-4)


def test_installing_twice_and_names_and_state_stay():
    model = build("llama")
    names, keys = [type(m).__name__ for m in model.modules()], list(model.state_dict())
    trunk.install(model)
    kinds = [type(m) for m in model.modules()]
    trunk.install(model)
    assert [type(m) for m in model.modules()] == kinds
    assert [type(m).__name__ for m in model.modules()] == names
    assert list(model.state_dict()) == keys
    assert isinstance(model.model.norm, LlamaRMSNorm)


def test_copies_and_pickles_are_fast_too():
    model = build("llama")
    assert leak.fits(Policy(model).model)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert isinstance(other.model.norm, trunk._FastNorm)
        assert other.model.norm.weight is not model.model.norm.weight
        with torch.no_grad():
            assert torch.equal(Policy(other)(batch()).logps, Policy(model)(batch()).logps)
