"""The router's loss of a flat row against that of the padded rectangle, by the library's own forward."""

import copy

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lit_align.batches import Forest
from lit_align.outputs import LossOutput, Scores
from lit_align.scoring.policy import Policy
from lit_align.scoring.router import balances

SMALL = {
    "vocab_size": 53,
    "hidden_size": 16,
    "intermediate_size": 32,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
KINDS = {
    "mixtral": {"num_local_experts": 4},
    "qwen3_moe": {"num_experts": 4, "head_dim": 4, "decoder_sparse_step": 1},
}
ROUTER = frozenset({"router_loss"})


def build(kind: str):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SMALL, **KINDS[kind]))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(4)
    return model


def batch() -> Forest:
    """Two and three completions of a prompt, which counts as often; one empty prompt."""
    ids = torch.arange(3, 53).tolist()
    return Forest.from_lists(
        [ids[:5], ids[7:8], []], [[ids[8:12], ids[14:20]], [ids[3:6], ids[9:14], ids[30:31]], [ids[1:8]]]
    )


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_equals_the_padded_layout(kind):
    model = build(kind)
    flat, padded = Policy(model), Policy(copy.deepcopy(model), layout="padded")
    assert balances(model)
    assert flat.flat_layout(batch()) is not None

    def loss(scores: Scores, forest: Forest) -> LossOutput:
        total = 0.5 * scores.router_loss - 0.01 * (scores.logps * forest.weights).sum()
        return LossOutput(total, torch.ones(()), {})

    found = []
    for policy in (flat, padded):
        output = policy(batch(), loss=loss, statistics=ROUTER)
        output.total.backward()
        gate = next(p for n, p in policy.named_parameters() if n.endswith("gate.weight"))
        found.append((policy(batch(), statistics=ROUTER).router_loss, output.total, gate.grad))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert found[0][2].abs().sum() > 0


def test_a_dense_model_has_none():
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SMALL))
    assert not balances(model)
    with pytest.raises(ValueError, match="has no router"):
        Policy(model)(batch(), statistics=ROUTER)
