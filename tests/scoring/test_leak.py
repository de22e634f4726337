"""Which architectures take the flat layout, and that it is exact in those."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lit_align.scoring import flat, leak, padded
from lit_align.scoring.layout import flat_layout

SMALL = {
    "vocab_size": 53,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
GROUPED = SMALL | {"num_key_value_heads": 2}
FLAT: dict[str, dict[str, Any]] = {
    "llama": GROUPED,
    "qwen2": GROUPED,
    "qwen3": GROUPED | {"head_dim": 4},
    "mistral": GROUPED,
    "gemma": GROUPED | {"head_dim": 4},
    "gpt2": {"vocab_size": 53, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "gpt_neox": SMALL,
    "phi": SMALL,
    "opt": {
        "vocab_size": 53,
        "hidden_size": 16,
        "word_embed_proj_dim": 16,
        "ffn_dim": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
    },
    "mixtral": GROUPED | {"num_local_experts": 4},
    "cohere": GROUPED,
    "granite": GROUPED | {"logits_scaling": 4.0},
}
PADDED: dict[str, dict[str, Any]] = {
    "mamba": {"vocab_size": 53, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4},
    "bloom": {"vocab_size": 53, "hidden_size": 16, "n_layer": 2, "n_head": 4},
}


def build(kind: str, settings: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings, **ends)).eval()
    with torch.no_grad():  # away from the small start, where every token is alike and nothing would leak
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(8)
    return model


@pytest.mark.parametrize("kind", sorted(FLAT))
def test_flat_architectures(kind):
    model = build(kind, FLAT[kind])
    assert leak.fits(model), leak._reason(model)
    batch = leak.probe(53)
    with torch.no_grad():
        ours = flat.score(model, batch, flat_layout(batch)).logps
        theirs = padded.score(model, batch).logps
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", sorted(PADDED))
def test_architectures_that_are_padded(kind, caplog):
    caplog.set_level("INFO")
    assert not leak.fits(build(kind, PADDED[kind]))
    assert "batches are padded, not flat" in caplog.text


def test_a_leak_is_seen(monkeypatch):
    """With the layout lost on the way, every document sees the whole row before it."""
    model = build("llama", GROUPED)

    def leaky(layout):
        return torch.ones((1, 1, sum(layout.pieces), sum(layout.pieces)), dtype=torch.bool).tril()

    monkeypatch.setattr(flat, "carrier", leaky)
    assert "depend on its neighbours" in leak._reason(model)


def test_eager_attention_is_left_alone():
    model = build("llama", GROUPED)
    model.set_attn_implementation("eager")
    assert "eager" in leak._reason(model)
    assert model.config._attn_implementation == "eager"


def test_a_window_limits_the_length_of_documents():
    assert leak.longest_document(build("mistral", GROUPED | {"sliding_window": 7})) == 7
    assert leak.longest_document(build("llama", GROUPED)) is None


def test_the_mode_is_restored():
    model = build("llama", GROUPED).train()
    leak.fits(model)
    assert model.training
