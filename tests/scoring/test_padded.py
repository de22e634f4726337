"""The padded layout against golden numbers, and against the definition on unpadded sequences."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from lit_align.batches import Forest
from lit_align.scoring import padded

ALL = frozenset({"entropy", "log_sum_p2", "mean_logit", "top1"})
GOLDEN_NAMES = {
    "logps": "log_probs",
    "entropy": "entropy",
    "log_sum_p2": "log_sum_sq_probs",
    "mean_logit": "mean_logits",
    "top1": "is_top1",
}


@pytest.fixture(scope="module")
def tiny() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=37, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    return LlamaForCausalLM(config).double().eval()


@pytest.mark.parametrize("case", ["policy", "policy_left_padding", "policy_temperature", "reference"])
def test_statistics_match_the_goldens(golden, golden_models, case):
    data = golden("logprobs")
    expected = next(c for c in data["cases"] if c["id"] == f"logprobs/{case}")
    rows = data["batches"]["seq_a"]["rows"]
    model = AutoModelForCausalLM.from_pretrained(golden_models / expected["hparams"]["model"])
    batch = Forest.from_lists([r["prompt_ids"] for r in rows], [[r["completion_ids"]] for r in rows])
    with torch.no_grad():
        scores = padded.score(model, batch, ALL, temperature=expected["hparams"]["temperature"])
    for ours, theirs in GOLDEN_NAMES.items():
        wanted = torch.tensor([v for row in expected["formula_f64"][theirs] for v in row]).float()
        torch.testing.assert_close(getattr(scores, ours), wanted, rtol=1e-4, atol=1e-5)


forests = st.lists(
    st.tuples(
        st.lists(st.integers(0, 36), max_size=5),
        st.lists(st.lists(st.integers(0, 36), max_size=6), min_size=1, max_size=3),
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=25, deadline=None)
@given(rows=forests)
def test_equals_one_sequence_at_a_time(tiny, rows):
    batch = Forest.from_lists([p for p, _ in rows], [c for _, c in rows])
    scores = padded.score(tiny, batch)
    expected = []
    for prompt, completion, _ in batch.sequences():
        ids = torch.tensor([prompt + completion])
        logps = tiny(ids).logits.log_softmax(-1) if ids.numel() else None
        for j, token in enumerate(completion):
            column = len(prompt) + j
            expected.append(logps[0, column - 1, token].item() if column else 0.0)
    torch.testing.assert_close(
        scores.logps.double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-9
    )


def test_a_token_that_weighs_nothing_is_not_scored(tiny):
    batch = Forest.from_lists([[1, 2]], [[[3, 4, 5]]], weights=[[[0.0, 1.0, 0.0]]])
    logps = padded.score(tiny, batch).logps
    assert logps[0] == 0
    assert logps[2] == 0
    assert logps[1] < 0


def test_pad_and_token_0_are_not_confused(tiny):
    """Ids equal to whatever fills the rectangle are ordinary tokens."""
    alone = padded.score(tiny, Forest.from_lists([[0, 0]], [[[0, 0, 0]]])).logps
    beside = padded.score(tiny, Forest.from_lists([[0, 0], [5] * 9], [[[0, 0, 0]], [[7]]])).logps
    torch.testing.assert_close(beside[:3], alone)


def test_router_loss_of_a_mixture_of_experts():
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=37,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=4,
    )
    model = MixtralForCausalLM(config)
    batch = Forest.from_lists([[1, 2]], [[[3, 4, 5]]])
    scores = padded.score(model, batch, frozenset({"router_loss"}))
    assert scores.router_loss.requires_grad
    assert scores.router_loss.item() > 0


def test_router_loss_of_a_dense_model_is_an_error(tiny):
    with pytest.raises(ValueError, match="not a mixture of experts"):
        padded.score(tiny, Forest.from_lists([[1]], [[[2]]]), frozenset({"router_loss"}))
