"""A reference that shares its first layers."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from lit_align.models.build import build_causal_lm
from lit_align.models.reference_model import create_reference_model


@pytest.fixture
def model():
    return build_causal_lm(
        {"model_type": "llama", "vocab_size": 64, "hidden_size": 16, "intermediate_size": 24}
        | {"num_hidden_layers": 4, "num_attention_heads": 2}
    ).train()


def owned(reference, model):
    """Names of the reference's parameters that are not the model's."""
    theirs = {id(p) for p in model.parameters()}
    return {name for name, p in reference.named_parameters() if id(p) not in theirs}


def test_a_whole_copy(model):
    reference = create_reference_model(model)
    assert owned(reference, model) == {name for name, _ in model.named_parameters()}
    assert all(p.requires_grad for p in model.parameters())
    assert not any(p.requires_grad for p in reference.parameters())
    assert not reference.training


@pytest.mark.parametrize("pattern", [None, "model.layers.{layer}"])
@pytest.mark.parametrize("count", [1, 3, 4])
def test_the_first_layers_are_the_models_own(model, count, pattern):
    reference = create_reference_model(model, count, pattern)
    copied = owned(reference, model)
    rest = {f"model.layers.{i}" for i in range(count, 4)} | {"model.norm", "lm_head"}
    assert {".".join(n.split(".")[:3]) if "layers" in n else n.rpartition(".")[0] for n in copied} == rest
    for name, p in model.named_parameters():
        assert p.requires_grad == (name in copied)
    assert not any(p.requires_grad for p in reference.parameters())


def test_training_moves_the_model_and_not_the_reference(model, ids):
    reference = create_reference_model(model, 2)
    with torch.no_grad():
        before = model.eval()(ids).logits
        assert torch.equal(reference(ids).logits, before)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1.0)
    model(ids).logits.square().sum().backward()
    optimizer.step()
    with torch.no_grad():
        assert torch.equal(reference(ids).logits, before)
        assert not torch.equal(model(ids).logits, before)


def test_a_tied_head_is_shared_with_the_embeddings():
    model = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=8, n_layer=2, n_head=2, n_positions=16))
    reference = create_reference_model(model, 1)
    assert reference.lm_head.weight is model.lm_head.weight
    assert reference.transformer.wpe.weight is model.transformer.wpe.weight
    assert not model.lm_head.weight.requires_grad
    assert reference.transformer.h[1].mlp.c_fc.weight is not model.transformer.h[1].mlp.c_fc.weight


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((5,), "has 4 layers"),
        ((0,), "at least 1"),
        ((1, "model.layers"), "has no {layer}"),
        ((1, "transformer.h.{layer}"), "no module of LlamaForCausalLM"),
    ],
)
def test_wrong_requests_are_refused(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        create_reference_model(model, *arguments)


def test_adapters_need_no_copy(architecture):
    model = build_causal_lm({"architecture": architecture, "lora": {"r": 2}})
    with pytest.raises(ValueError, match="AdapterOff"):
        create_reference_model(model, 1)
