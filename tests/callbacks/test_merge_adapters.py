"""Adapters worked into their base: the same logits, and nothing changed in training."""

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_align import SFT
from lit_align.callbacks import ExportHF, MergeAdapters
from lit_align.callbacks.adapter_mixing import mixed_adapter
from lit_align.datamodules import SupervisedDataModule
from lit_align.shipped import find

IDS = torch.arange(5, 25).view(2, 10)


@torch.no_grad()
def _logits(model: Any) -> torch.Tensor:
    return model.eval()(input_ids=IDS).logits


@pytest.fixture
def two_adapters(make_model) -> Any:
    """A model with adapters ``default``, which is trained, and ``other``; both do something."""
    model = make_model(lora=True)
    model.add_adapter("other", model.peft_config["default"])
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    model.set_adapter("default")
    return model


def test_merged_logits_are_the_adapters(package, make_stranger, make_trainer, loader, tmp_path) -> None:
    module = make_stranger(package, lora=True)
    make_trainer(MergeAdapters(), package=package, max_steps=3).fit(module, loader())
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert type(merged).__name__ == "LlamaForCausalLM"
    with module.language_model.disable_adapter():
        base = _logits(module.language_model)
    assert (_logits(merged) - _logits(module.language_model)).abs().max() < 1e-5
    assert (_logits(merged) - base).abs().max() > 1e-2
    assert len(AutoTokenizer.from_pretrained(tmp_path / "merged")) == len(module.tokenizer)


def test_training_is_the_same_bit_for_bit(
    make_stranger, two_adapters, make_trainer, loader, tmp_path
) -> None:
    import copy

    mix = {"default": 0.7, "other": 0.3}
    found = []
    for callbacks in ([], [MergeAdapters(str(tmp_path / "m"), 1, mix, "dare_linear", 0.5)]):
        torch.manual_seed(3)
        module = make_stranger(model=copy.deepcopy(two_adapters))
        trainer = make_trainer(*callbacks, max_steps=3)
        trainer.fit(module, loader())
        state = {key: value.clone() for key, value in module.state_dict().items()}
        flags = {name: p.requires_grad for name, p in module.named_parameters()}
        found.append((state, flags, torch.get_rng_state(), module.language_model.active_adapters))
    assert found[0][0].keys() == found[1][0].keys()
    assert all(torch.equal(found[0][0][key], found[1][0][key]) for key in found[0][0])
    assert found[0][1] == found[1][1]
    assert torch.equal(found[0][2], found[1][2])
    assert found[0][3] == found[1][3] == ["default"]
    # The last step's model is written once.
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == ["step_000001", "step_000002", "step_000003"]


def test_the_weighted_sum_of_adapters(two_adapters, make_stranger, make_trainer, loader, tmp_path) -> None:
    """``cat``: W + w1 B1 A1 s + w2 B2 A2 s, worked out on one layer."""
    two_adapters.save_pretrained(tmp_path / "ad", selected_adapters=["other"])
    mix = {"default": 0.5, str(tmp_path / "ad" / "other"): -2.0}
    module = make_stranger(model=two_adapters, lr=0.0)
    make_trainer(MergeAdapters(adapters=mix), max_steps=1).fit(module, loader())
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    layer = two_adapters.base_model.model.model.layers[0].mlp.up_proj
    expected = layer.base_layer.weight.clone()
    for name, weight in (("default", 0.5), ("other", -2.0)):
        delta = layer.lora_B[name].weight @ layer.lora_A[name].weight
        expected += weight * layer.scaling[name] * delta
    assert torch.allclose(merged.model.layers[0].mlp.up_proj.weight, expected, atol=1e-5)


@pytest.mark.parametrize("combination", ["linear", "svd", "ties", "dare_linear", "dare_ties", "cat"])
def test_every_combination_gives_a_model_and_leaves_no_trace(two_adapters, combination) -> None:
    before, start = _logits(two_adapters), dict(two_adapters.state_dict())
    density = 0.5 if combination.startswith(("ties", "dare")) else None
    with mixed_adapter(two_adapters, {"default": 0.7, "other": 0.3}, combination, density):
        mixed = _logits(two_adapters)
    assert (mixed - before).abs().max() > 1e-3
    assert torch.equal(_logits(two_adapters), before)
    assert two_adapters.state_dict().keys() == start.keys()
    assert list(two_adapters.peft_config) == ["default", "other"]
    with pytest.raises(RuntimeError, match="stop"), mixed_adapter(two_adapters, {"other": 1}, "cat", None):
        raise RuntimeError("stop")
    assert torch.equal(_logits(two_adapters), before)


def test_our_module(make_trainer, tmp_path) -> None:
    module = SFT({"path": "lit-align/tiny", "lora": {"r": 4}}, lr=1e-2)
    data = SupervisedDataModule(train="lit-align/manners-sft", val=None, batch_size=2)
    make_trainer(MergeAdapters(str(tmp_path / "m")), max_steps=2).fit(module, data)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    # In float64, because the rounding of logits of this size is itself 1e-5.
    assert (_logits(merged.double()) - _logits(module.policy.model.double())).abs().max() < 1e-5


def test_a_quantised_base_is_loaded_again_in_full(make_trainer, tmp_path) -> None:
    import peft

    pytest.importorskip("bitsandbytes")
    policy = {"path": "lit-align/tiny", "lora": {"r": 4}, "quantization": {"kind": "nf4"}}
    module = SFT(policy, lr=1e-2)
    data = SupervisedDataModule(train="lit-align/manners-sft", val=None, batch_size=2)
    callbacks = [MergeAdapters(str(tmp_path / "m")), ExportHF(tmp_path / "adapter")]
    make_trainer(*callbacks, max_steps=2).fit(module, data)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    # The same adapter on the base in full precision, by peft alone.
    full = AutoModelForCausalLM.from_pretrained(find("lit-align/tiny"))
    wanted = peft.PeftModel.from_pretrained(full, tmp_path / "adapter")
    assert (_logits(merged.double()) - _logits(wanted.double())).abs().max() < 1e-5


@pytest.mark.parametrize("combination", ["cat", "svd", "ties", "dare_linear"])
def test_several_adapters_of_a_quantised_base(combination: Any, make_trainer, tmp_path) -> None:
    """As peft combines them on the base in full precision."""
    import peft

    pytest.importorskip("bitsandbytes")
    lora = peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    plain = AutoModelForCausalLM.from_pretrained(find("lit-align/tiny"))
    peft.get_peft_model(plain, lora).save_pretrained(tmp_path / "other")
    density = 0.5 if combination.startswith(("ties", "dare")) else None
    mix = {"default": 0.7, str(tmp_path / "other"): 0.3}
    module = SFT({"path": "lit-align/tiny", "lora": {"r": 4}, "quantization": {"kind": "nf4"}}, lr=1e-2)
    data = SupervisedDataModule(train="lit-align/manners-sft", val=None, batch_size=2)
    merge = MergeAdapters(str(tmp_path / "m"), adapters=mix, combination=combination, density=density)
    make_trainer(merge, ExportHF(tmp_path / "adapter"), max_steps=2).fit(module, data)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "m")

    full = AutoModelForCausalLM.from_pretrained(find("lit-align/tiny"))
    wanted = peft.PeftModel.from_pretrained(full, tmp_path / "adapter")
    with mixed_adapter(wanted, mix, combination, density):
        assert (_logits(merged.double()) - _logits(wanted.double())).abs().max() < 1e-5


def test_what_cannot_be_merged_is_told(make_stranger, make_trainer, loader, two_adapters) -> None:
    with pytest.raises(ValueError, match="has no adapters; ExportHF writes it"):
        make_trainer(MergeAdapters(), max_steps=1).fit(make_stranger(), loader())
    mix = mixed_adapter(two_adapters, {"absent": 1.0}, "cat", None)
    with pytest.raises(ValueError, match=r"'absent' is neither an adapter.*has default, other"), mix:
        pass
    with pytest.raises(ValueError, match="choose one of cat, linear"):
        MergeAdapters(combination="slerp")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="ties needs a density"):
        MergeAdapters(adapters={"a": 1.0}, combination="ties")
    with pytest.raises(ValueError, match="density goes with"):
        MergeAdapters(density=0.5)
    with pytest.raises(ValueError, match="adapters is empty"):
        MergeAdapters(adapters={})
