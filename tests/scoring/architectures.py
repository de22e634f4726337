"""Tiny models of many architectures: those that take flat rows, and some that do not."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

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
