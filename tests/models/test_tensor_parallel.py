"""What can be split, and what is refused; the numbers are in two_process/test_split_families.py."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from lit_align.models.tensor_parallel import Local, equalise, original_class, split

SMALL: dict[str, Any] = {
    "vocab_size": 8,
    "hidden_size": 16,
    "intermediate_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}

NARROW: dict[str, Any] = {
    "kind": "gemma3n_text",
    "num_hidden_layers": 2,
    "layer_types": ["sliding_attention", "full_attention"],
    "num_kv_shared_layers": 0,
    "activation_sparsity_pattern": [0.0, 0.5],
    "vocab_size_per_layer_input": 8,
    "hidden_size_per_layer_input": 4,
    "head_dim": 4,
    "pad_token_id": 0,
}


class Group:
    """Of a mesh its size alone, by which refusals go."""

    def __init__(self, count: int) -> None:
        self.count = count

    def size(self) -> int:
        return self.count


class Scorer(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model


def scorer(kind: str = "llama", lora: dict[str, Any] | None = None, **options: Any) -> Scorer:
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**(SMALL | options)))
    if lora is not None:
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **lora))
    return Scorer(model)


@pytest.fixture
def mesh(tmp_path):
    """One process, which holds all of every product."""
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,), mesh_dim_names=("tensor_parallel",))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("given", "size", "message"),
    [
        ({}, 3, "num_attention_heads 4, which 3 processes cannot share evenly"),
        ({}, 4, "num_key_value_heads 2, which 4 processes cannot share evenly"),
        ({"intermediate_size": 13}, 2, r"mlp\.gate_proj has 13 features, which 2 processes"),
        ({"kind": "mixtral"}, 2, "MixtralForCausalLM cannot be split .* packed_colwise"),
        ({"kind": "olmo2"}, 2, "Olmo2ForCausalLM cannot be split .* colwise_gather_output"),
        ({"kind": "gpt2", "n_head": 4, "n_embd": 16}, 2, "GPT2LMHeadModel .* no plan for it"),
        ({"kind": "phi", "qk_layernorm": True}, 2, r"PhiForCausalLM\.layers\.0\.self_attn\.q_layernorm is"),
        (
            {"kind": "phi", "qk_layernorm": True, "lora": {"target_modules": "all-linear"}},
            2,
            r"layers\.0\.self_attn\.q_layernorm is a LayerNorm with weights between layers that are split",
        ),
        ({"kind": "cohere", "use_qk_norm": True}, 2, r"CohereForCausalLM\.layers\.0\.self_attn\.q_norm is"),
        ({"kind": "apertus"}, 2, r"ApertusForCausalLM\.layers\.0\.mlp\.act_fn is a XIELUActivation"),
        (NARROW, 2, "Gemma3nForCausalLM cannot be split .* activation_sparsity_pattern"),
        ({"lora": {"use_dora": True, "target_modules": ["q_proj"]}}, 2, "variant of LoRA"),
    ],
)
def test_what_cannot_be_split_is_refused_before_anything_changes(given, size, message):
    one = scorer(**given)
    with pytest.raises(ValueError, match=message):
        split(one, Group(size))
    assert not any(isinstance(module, Local) for module in one.modules())


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "gpt_neox"])
def test_a_split_model_stays_what_it_is(kind, mesh):
    """By one process all is the same: names, classes' names, gradients' places, tied weights."""
    more = {"head_dim": 4} if kind.startswith("gemma") else {}
    options = {"lora": {"target_modules": "all-linear"}, **more}
    torch.manual_seed(0)
    whole, parts = scorer(kind, **options), scorer(kind, **options)
    parts.load_state_dict(whole.state_dict())
    names = [(name, type(module).__name__) for name, module in whole.named_modules()]
    split(parts, mesh)
    assert [(name, type(module).__name__) for name, module in parts.named_modules()] == names
    assert [original_class(m) for m in parts.modules()] == [type(m) for m in whole.modules()]
    assert all(isinstance(p, DTensor) for p in parts.parameters())
    assert len(list(parts.parameters())) == len(list(whole.parameters()))
    forms = {type(module).__mro__[1].__name__ for module in parts.modules() if isinstance(module, Local)}
    assert {"_Columns", "_Rows", "_Whole"} <= forms
    ids = torch.tensor([[1, 2, 3, 4]])
    whole.model(input_ids=ids, labels=ids).loss.backward()
    loss = parts.model(input_ids=ids, labels=ids).loss
    loss.backward()
    for (name, mine), theirs in zip(parts.named_parameters(), whole.parameters(), strict=True):
        assert (mine.grad is None) == (theirs.grad is None), name
        if theirs.grad is not None:
            assert torch.allclose(mine.grad.to_local(), theirs.grad, atol=1e-7), name


@pytest.mark.parametrize(("lora", "backward"), [(None, 2), ({"target_modules": ["q_proj"]}, 5)])
def test_a_layer_needs_two_sums_in_each_direction(lora, backward, mesh, monkeypatch):
    """One behind attention, one behind the feed-forward part; backward, one in front of each. Beside LoRA
    queries, keys and values have one each, and so have the states between LoRA's matrices.
    """
    one = scorer(lora=lora)
    split(one, mesh)
    sums = []
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda value, group: sums.append(value.shape[-1]))
    embeddings = torch.randn(1, 3, 16, requires_grad=True)
    loss = one.model(inputs_embeds=embeddings).logits.sum()
    assert sums == [16, 16]
    loss.backward()
    assert len(sums) == 2 + backward


def test_only_what_everybody_holds_is_averaged(mesh, monkeypatch):
    one = scorer()
    split(one, mesh)
    ids = torch.tensor([[1, 2]])
    one.model(input_ids=ids, labels=ids).loss.backward()
    before = {name: p.grad.to_local().clone() for name, p in one.named_parameters()}
    # As if another process had all ones, and averages were of one process.
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda value, group: value.add_(1))
    others = torch.ones(2)
    equalise([*(p.grad for p in one.parameters()), others])
    for name, p in one.named_parameters():
        more = 0 if "_proj" in name else 1
        assert torch.equal(p.grad.to_local(), before[name] + more), name
    assert torch.equal(others, torch.ones(2))
