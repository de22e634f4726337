"""Building models: where weights come from, their dtype, adapters, checkpointing."""

import shutil

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from lit_align.models.build import build_causal_lm, build_reward_model
from lit_align.models.config import LoraConfig, ModelConfig


def logits(model, ids):
    with torch.no_grad():
        return model.eval()(ids).logits


def test_a_directory_gives_the_weights_in_it(checkpoint, ids):
    theirs = AutoModelForCausalLM.from_pretrained(checkpoint)
    assert torch.equal(logits(build_causal_lm(str(checkpoint)), ids), logits(theirs, ids))


def test_auto_keeps_the_checkpoints_dtype_and_a_named_one_converts(half_checkpoint):
    auto = build_causal_lm(str(half_checkpoint))
    assert {p.dtype for p in auto.parameters()} == {torch.bfloat16}
    wide = build_causal_lm({"path": str(half_checkpoint), "dtype": "float32"})
    assert {p.dtype for p in wide.parameters()} == {torch.float32}


def test_random_weights_depend_on_the_seed_alone(architecture, ids):
    torch.manual_seed(1)
    first = build_causal_lm(architecture)
    after = torch.rand(())
    torch.manual_seed(1)
    assert torch.rand(()) == after, "building must not use up the global generator"
    second = build_causal_lm(architecture)
    other = build_causal_lm(ModelConfig(architecture=architecture, seed=1))
    assert torch.equal(logits(first, ids), logits(second, ids))
    assert not torch.equal(logits(first, ids), logits(other, ids))


def test_from_scratch_needs_a_configuration_only(checkpoint, tmp_path, ids):
    shutil.copy(checkpoint / "config.json", tmp_path)
    with pytest.raises(ValueError, match=r"no weights.*from_scratch: true"):
        build_causal_lm(str(tmp_path))
    model = build_causal_lm({"path": str(tmp_path), "from_scratch": True})
    trained = build_causal_lm(str(checkpoint))
    assert model.config.hidden_size == 32
    assert model.config._name_or_path == "", "random weights must not be reloaded by a name"
    # The checkpoint was drawn from the same seed, which is what makes this equality a check of both.
    assert torch.equal(logits(model, ids), logits(trained, ids))


def test_a_configuration_object_gives_random_weights(checkpoint):
    model = build_causal_lm(AutoConfig.from_pretrained(checkpoint))
    assert type(model).__name__ == "LlamaForCausalLM"
    assert model.config.num_hidden_layers == 2


def test_a_module_in_memory_is_used_as_it_is(architecture):
    model = build_causal_lm(architecture)
    assert build_causal_lm(model) is model
    adapted = build_causal_lm(model, options=ModelConfig("unused", lora=LoraConfig(r=2)))
    assert adapted.get_base_model() is model
    with pytest.raises(ValueError, match="has adapters already"):
        build_causal_lm(adapted, options=ModelConfig("unused", lora=LoraConfig(r=2)))
    with pytest.raises(ValueError, match="in memory cannot be quantised"):
        build_causal_lm(model, options=ModelConfig("unused", quantization={"kind": "nf4"}))
    with pytest.raises(ValueError, match="convert it yourself"):
        build_causal_lm(model, options=ModelConfig("unused", dtype="bfloat16"))
    with pytest.raises(ValueError, match="in memory"):
        build_causal_lm("org/name", options=ModelConfig("unused"))


def test_trust_in_remote_code_is_said_aloud(checkpoint, caplog):
    build_causal_lm(str(checkpoint))
    assert "trust_remote_code" not in caplog.text
    build_causal_lm({"path": str(checkpoint), "trust_remote_code": True})
    assert "trust_remote_code" in caplog.text
    assert "no revision pinned" in caplog.text


def test_attention_is_the_one_asked_for(checkpoint, architecture):
    loaded = build_causal_lm({"path": str(checkpoint), "attn_implementation": "eager"})
    random = build_causal_lm(ModelConfig(architecture=architecture, attn_implementation="eager"))
    assert loaded.config._attn_implementation == random.config._attn_implementation == "eager"


def test_a_classifier_is_no_language_model(tmp_path, architecture):
    build_reward_model(architecture).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"lacks 1 weights.*lm_head"):
        build_causal_lm(str(tmp_path))


def test_an_adapter_directory_says_what_to_write(checkpoint, tmp_path):
    build_causal_lm({"path": str(checkpoint), "lora": {"r": 2}}).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"set path to {checkpoint} and adapter to {tmp_path}"):
        build_causal_lm(str(tmp_path))


def test_a_directory_that_is_not_there_names_its_neighbour(checkpoint):
    wrong = checkpoint.parent / (checkpoint.name + "x")
    with pytest.raises(ValueError, match=f"did you mean .*{checkpoint.name}"):
        build_causal_lm(str(wrong))


# -- adapters --------------------------------------------------------------------------------------


def test_lora_trains_adapters_in_float32_and_changes_nothing_at_first(half_checkpoint, ids):
    plain = build_causal_lm(str(half_checkpoint))
    model = build_causal_lm({"path": str(half_checkpoint), "lora": {"r": 4}})
    trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert trainable
    assert all("lora_" in n and p.dtype == torch.float32 for n, p in trainable.items())
    assert torch.equal(logits(model, ids), logits(plain, ids))
    narrow = build_causal_lm({"path": str(half_checkpoint), "lora": {"r": 4, "dtype": "base"}})
    assert {p.dtype for p in narrow.parameters()} == {torch.bfloat16}


def test_lora_fields_reach_peft(checkpoint):
    lora = LoraConfig(
        r=3, alpha=5, dropout=0.1, targets=["q_proj"], dora=True, rslora=True, modules_to_save=["lm_head"]
    )
    lora.extra = {"rank_pattern": {"layers.1.self_attn.q_proj": 2}}
    found = build_causal_lm(ModelConfig(str(checkpoint), lora=lora)).peft_config["default"]
    assert (found.r, found.lora_alpha, found.lora_dropout) == (3, 5, 0.1)
    assert (found.use_dora, found.use_rslora, set(found.target_modules)) == (True, True, {"q_proj"})
    assert found.modules_to_save == ["lm_head"]
    assert found.rank_pattern == {"layers.1.self_attn.q_proj": 2}
    with pytest.raises(ValueError, match="did you mean 'init_lora_weights'"):
        build_causal_lm(ModelConfig(str(checkpoint), lora={"extra": {"init_lora_weight": True}}))


def test_new_adapters_depend_on_the_seed_alone(checkpoint):
    def first(seed):
        model = build_causal_lm({"path": str(checkpoint), "lora": {"r": 2}, "seed": seed})
        return next(p for n, p in model.named_parameters() if "lora_A" in n)

    assert torch.equal(first(0), first(0))
    assert not torch.equal(first(0), first(1))


def test_an_existing_adapter_goes_on_training(checkpoint, tmp_path, ids):
    model = build_causal_lm({"path": str(checkpoint), "lora": {"r": 2}})
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.fill_(0.1)
    model.save_pretrained(tmp_path)
    again = build_causal_lm({"path": str(checkpoint), "adapter": str(tmp_path)})
    assert torch.equal(logits(again, ids), logits(model, ids))
    assert all(p.requires_grad == ("lora_" in n) for n, p in again.named_parameters())


@pytest.mark.parametrize("lora", [None, {"r": 2}])
def test_checkpointing_gives_the_same_gradients(checkpoint, ids, lora):
    def gradients(checkpointing):
        config = {"path": str(checkpoint), "gradient_checkpointing": checkpointing, "lora": lora}
        model = build_causal_lm(config).train()
        assert model.is_gradient_checkpointing == checkpointing
        model(ids, labels=ids, use_cache=False).loss.backward()
        return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    plain, recomputed = gradients(False), gradients(True)
    assert plain.keys() == recomputed.keys()
    assert len(plain) == (28 if lora else 21)
    for name in plain:
        torch.testing.assert_close(plain[name], recomputed[name])


# -- reward models ---------------------------------------------------------------------------------


def test_a_language_model_gets_a_fresh_seeded_head(checkpoint, caplog):
    first = build_reward_model(str(checkpoint), pad_token_id=7)
    assert "a fresh one, from seed 0" in caplog.text
    assert first.score.weight.shape == (1, 32)
    assert first.config.pad_token_id == 7
    assert torch.equal(first.score.weight, build_reward_model(str(checkpoint)).score.weight)
    other = build_reward_model({"path": str(checkpoint), "seed": 1})
    assert not torch.equal(first.score.weight, other.score.weight)
    assert build_reward_model(str(checkpoint)).config.pad_token_id == 2, "the EOS where nothing is known"


def test_a_trained_head_is_loaded(checkpoint, tmp_path, caplog):
    model = build_reward_model(str(checkpoint))
    model.score.weight.data.fill_(0.5)
    model.save_pretrained(tmp_path)
    caplog.clear()
    again = build_reward_model(str(tmp_path))
    assert "fresh" not in caplog.text
    assert torch.equal(again.score.weight, model.score.weight)


def test_several_labels_are_no_reward(tmp_path, architecture):
    model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(**architecture, num_labels=3))
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"score.weight is \[3, 32\], not \[1, 32\]"):
        build_reward_model(str(tmp_path))
    with pytest.raises(ValueError, match="3 labels"):
        build_reward_model(model)


def test_lora_trains_the_head_too(checkpoint):
    model = build_reward_model({"path": str(checkpoint), "lora": {"r": 2}})
    trainable = [n for n, p in model.named_parameters() if p.requires_grad and "lora_" not in n]
    assert trainable == ["base_model.model.score.modules_to_save.default.weight"]
