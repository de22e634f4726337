"""Value heads: how they start, and how they lie on disk."""

import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from lit_align.models.build import build_causal_lm
from lit_align.models.value_head import (
    FILE,
    ValueHead,
    ValueHeadConfig,
    build_value_head,
    has_value_head,
    load_value_head,
    save_value_head,
)


def wide(init, **more):
    model = build_causal_lm(
        {"model_type": "gpt2", "n_embd": 4096, "n_layer": 0, "n_head": 1, "vocab_size": 2}
    )
    return build_value_head(model, ValueHeadConfig(init, **more)).summary


def test_zeros():
    head = wide("zeros")
    assert not head.weight.any()
    assert not head.bias.any()


@pytest.mark.parametrize(
    ("init", "more", "std"),
    [
        ("normal", {}, 1 / math.sqrt(4097)),
        ("normal", {"std": 0.3}, 0.3),
        ("transformers", {}, 0.02),
    ],
)
def test_drawn_with_its_deviation(init, more, std):
    """4096 draws: the standard error of a standard deviation is 1.1 % of it."""
    head = wide(init, **more)
    assert float(head.weight.detach().std()) == pytest.approx(std, rel=0.05)
    assert not head.bias.any()


def test_a_seed_is_a_head():
    assert torch.equal(wide("normal", seed=3).weight, wide("normal", seed=3).weight)
    assert not torch.equal(wide("normal", seed=3).weight, wide("normal", seed=4).weight)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"init": "zero"}, "did you mean 'zeros'"),
        ({"init": "zeros", "std": 0.1}, "std goes with init: normal"),
        ({"init": "normal", "std": -0.1}, "must be above 0"),
        ({"dropout": 1.0}, "below 1"),
    ],
)
def test_wrong_options_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ValueHeadConfig(**arguments)


def test_a_value_by_hand():
    """2 * 3 - 1 * 4 + 0.5 = 2.5."""
    head = ValueHead(2)
    with torch.no_grad():
        head.summary.weight.copy_(torch.tensor([[2.0, -1.0]]))
        head.summary.bias.fill_(0.5)
    assert head(torch.tensor([[[3.0, 4.0]]])).tolist() == [[2.5]]


def test_dropout_while_training_only():
    torch.manual_seed(0)
    head = ValueHead(1000, dropout=0.5)
    states = torch.ones(1000)
    assert head(states) != head(states)
    head.eval()
    assert head(states) == head(states)


def test_a_directory_with_a_head_is_an_ordinary_model(checkpoint, tmp_path):
    model = build_causal_lm(str(checkpoint))
    head = build_value_head(model, ValueHeadConfig("normal"))
    assert not has_value_head(tmp_path)
    model.save_pretrained(tmp_path)
    save_value_head(head, tmp_path)
    assert has_value_head(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    found = load_value_head(again, tmp_path, dropout=0.25)
    assert found.dropout.p == 0.25
    for mine, theirs in ((head, found), (model, again)):
        for ours, read in zip(mine.state_dict().values(), theirs.state_dict().values(), strict=True):
            assert torch.equal(ours, read)


def test_names_in_the_file_are_those_of_other_trainers(golden_models, checkpoint, tmp_path):
    model = build_causal_lm(str(golden_models / "policy"))
    head = load_value_head(model, golden_models / "value_head")
    save_value_head(head, tmp_path)
    theirs, ours = load_file(golden_models / "value_head" / FILE), load_file(tmp_path / FILE)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_foreign_file_is_refused(checkpoint, tmp_path):
    model = build_causal_lm(str(checkpoint))
    save_file({"head.weight": torch.zeros(1, 32)}, tmp_path / FILE)
    with pytest.raises(ValueError, match=r"has head.weight; expected v_head"):
        load_value_head(model, tmp_path)
    save_value_head(ValueHead(16), tmp_path)
    with pytest.raises(ValueError, match=r"is \[1, 16\], the model needs \[1, 32\]"):
        load_value_head(model, tmp_path)
