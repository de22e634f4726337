"""Exports: what plain transformers and peft read back is what was in memory, which stays as it was."""

import json

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from lit_align.models import export
from lit_align.models.build import build_causal_lm, build_reward_model
from lit_align.models.config import ModelConfig
from lit_align.models.critic import build_actor_critic, build_critic
from lit_align.models.export import CriticParts, save_pretrained_dir
from lit_align.models.tokenizers import load_tokenizer
from lit_align.models.value_head import ValueHeadConfig


def logits(model, ids):
    with torch.no_grad():
        return model.eval()(ids).logits


def train_a_little(model):
    """Give every trainable weight a value of its own, and a gradient, as in the middle of a run."""
    generator = torch.Generator().manual_seed(0)
    for p in model.parameters():
        if p.requires_grad:
            p.data += 0.1 * torch.randn(p.shape, generator=generator)
            p.grad = torch.ones_like(p)
    return model


def state(model):
    return {n: (p.data.clone(), p.requires_grad, p.grad is not None) for n, p in model.named_parameters()}


def assert_untouched(model, before):
    after = state(model)
    assert after.keys() == before.keys()
    for name, (value, *flags) in before.items():
        assert torch.equal(after[name][0], value), name
        assert [*after[name][1:]] == flags, name


def test_a_whole_model_with_its_tokenizer(checkpoint, tmp_path, ids):
    model = train_a_little(build_causal_lm(str(checkpoint)))
    before = state(model)
    path = save_pretrained_dir(model, load_tokenizer("lit-align/tiny"), tmp_path / "a" / "export", merge=True)
    assert_untouched(model, before)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(path), ids), logits(model, ids))
    assert load_tokenizer(str(path)).chat_template
    assert [p.name for p in path.parent.iterdir()] == ["export"], "nothing temporary stays behind"


def test_an_adapter_alone_names_its_base(checkpoint, tmp_path, ids):
    model = train_a_little(build_causal_lm({"path": str(checkpoint), "lora": {"r": 4}}))
    before = state(model)
    path = save_pretrained_dir(model, None, tmp_path / "export")
    assert_untouched(model, before)
    assert not list(path.glob("model*.safetensors"))
    assert json.loads((path / "adapter_config.json").read_text())["base_model_name_or_path"] == str(
        checkpoint
    )
    again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(checkpoint), path)
    torch.testing.assert_close(logits(again, ids), logits(model, ids), rtol=0, atol=1e-5)


def test_only_the_active_adapter_is_exported_whatever_its_name(checkpoint, tmp_path, ids):
    model = build_causal_lm({"path": str(checkpoint), "lora": {"r": 4}})
    model.add_adapter("mine", model.peft_config["default"])
    model.set_adapter("mine")
    train_a_little(model)
    path = save_pretrained_dir(model, None, tmp_path / "export")
    assert not [p for p in path.iterdir() if p.is_dir()]
    again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(checkpoint), path)
    torch.testing.assert_close(logits(again, ids), logits(model, ids), rtol=0, atol=1e-5)
    merged = AutoModelForCausalLM.from_pretrained(
        save_pretrained_dir(model, None, tmp_path / "m", merge=True)
    )
    torch.testing.assert_close(logits(merged, ids), logits(model, ids), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "lora",
    [
        {"r": 4},
        {"r": 4, "dora": True, "rslora": True},
        {"r": 4, "modules_to_save": ["lm_head"]},
        {"r": 4, "targets": ["q_proj", "embed_tokens"]},
    ],
    ids=["lora", "dora", "modules_to_save", "embeddings"],
)
def test_a_merged_model_is_an_ordinary_model(checkpoint, tmp_path, ids, lora):
    model = train_a_little(build_causal_lm({"path": str(checkpoint), "lora": lora}))
    before, expected = state(model), logits(model, ids)
    path = save_pretrained_dir(model, None, tmp_path / "export", merge=True)
    assert_untouched(model, before)
    assert torch.equal(logits(model, ids), expected)
    again, report = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    torch.testing.assert_close(logits(again, ids), expected, rtol=0, atol=1e-5)
    assert (expected - logits(AutoModelForCausalLM.from_pretrained(checkpoint), ids)).abs().max() > 1e-2


@pytest.mark.parametrize("save_embeddings", [False, True])
def test_tied_embeddings_stay_tied_unless_they_came_apart(architecture, tmp_path, ids, save_embeddings):
    lora = {"r": 4, "modules_to_save": ["embed_tokens"] if save_embeddings else None}
    description = {"architecture": {**architecture, "tie_word_embeddings": True}, "lora": lora}
    model = train_a_little(build_causal_lm(description))
    path = save_pretrained_dir(model, None, tmp_path / "export", merge=True)
    again = AutoModelForCausalLM.from_pretrained(path)
    torch.testing.assert_close(logits(again, ids), logits(model, ids), rtol=0, atol=1e-5)
    tied = json.loads((path / "config.json").read_text())["tie_word_embeddings"]
    assert tied is not save_embeddings, "other tools go by the configuration alone"


@pytest.mark.parametrize("merge", [False, True])
def test_a_checkpointing_model_is_exported_with_its_cache(checkpoint, tmp_path, merge):
    description = {"path": str(checkpoint), "lora": {"r": 4}, "gradient_checkpointing": True}
    model = train_a_little(build_causal_lm(description))
    path = save_pretrained_dir(model, None, tmp_path / "export", merge=merge)
    assert model.is_gradient_checkpointing
    if merge:
        assert json.loads((path / "config.json").read_text())["use_cache"] is True


# -- reward models ---------------------------------------------------------------------------------


def test_a_reward_model_with_its_head(checkpoint, tmp_path, ids):
    model = train_a_little(build_reward_model(str(checkpoint), pad_token_id=0))
    path = save_pretrained_dir(model, None, tmp_path / "export")
    again = AutoModelForSequenceClassification.from_pretrained(path)
    assert again.config.pad_token_id == 0
    assert torch.equal(logits(again, ids), logits(model, ids))


@pytest.mark.parametrize("merge", [False, True])
def test_a_reward_model_with_lora_and_its_head(checkpoint, tmp_path, ids, merge):
    model = build_reward_model({"path": str(checkpoint), "lora": {"r": 4}}, pad_token_id=0)
    train_a_little(model)
    path = save_pretrained_dir(model, None, tmp_path / "export", merge=merge)
    if merge:
        again = AutoModelForSequenceClassification.from_pretrained(path)
        assert again.config.num_labels == 1
    else:
        # The base has no head of its own: any head it is loaded with is replaced by the saved one.
        base = AutoModelForSequenceClassification.from_pretrained(checkpoint, num_labels=1, pad_token_id=0)
        again = PeftModel.from_pretrained(base, path)
    torch.testing.assert_close(logits(again, ids), logits(model, ids), rtol=0, atol=1e-5)


# -- the directory ---------------------------------------------------------------------------------


def test_an_earlier_export_is_replaced_and_other_things_are_not(checkpoint, tmp_path):
    model = build_causal_lm(str(checkpoint))
    path = save_pretrained_dir(model, None, tmp_path / "export")
    (path / "stale.txt").write_text("old")
    save_pretrained_dir(model, None, path)
    assert not (path / "stale.txt").exists()
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "chapter.tex").write_text("long work")
    with pytest.raises(FileExistsError, match="name another directory"):
        save_pretrained_dir(model, None, thesis)
    # Many things have a config.json.
    project = tmp_path / "project"
    (project / ".git").mkdir(parents=True)
    (project / "config.json").write_text("{}")
    with pytest.raises(FileExistsError, match="name another directory"):
        save_pretrained_dir(model, None, project)
    (project / ".git").rmdir()
    with pytest.raises(FileExistsError, match="name another directory"):
        save_pretrained_dir(model, None, project)
    runs = save_pretrained_dir(model, None, tmp_path / "runs")
    (runs / "checkpoints").mkdir()
    with pytest.raises(FileExistsError, match="name another directory"):
        save_pretrained_dir(model, None, runs)
    link = tmp_path / "link"
    link.symlink_to(path)
    with pytest.raises(FileExistsError, match="is a link"):
        save_pretrained_dir(model, None, link)


def test_a_failed_export_leaves_the_earlier_one(checkpoint, tmp_path):
    model = build_causal_lm(str(checkpoint))
    path = save_pretrained_dir(model, None, tmp_path / "export")
    before = sorted(p.name for p in path.iterdir())

    def fail(folder):
        (folder / "half").write_text("half a model")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        export.write_directory(path, fail)
    assert sorted(p.name for p in path.iterdir()) == before
    assert [p.name for p in tmp_path.iterdir()] == ["export"]


@pytest.mark.parametrize("lora", [None, {"r": 4}])
@pytest.mark.parametrize("merge", [False, True])
def test_a_policy_with_its_value_head_and_a_critic(lora, merge, checkpoint, tmp_path, ids):
    """Both come back as they were, and the directory is that of an ordinary model."""
    source = ModelConfig(str(checkpoint), lora=lora)
    model, head = (train_a_little(m) for m in build_actor_critic(source, ValueHeadConfig("normal")))
    trunk, value = (train_a_little(m) for m in build_critic(source, ValueHeadConfig("normal", seed=1)))
    before = state(model)
    parts = CriticParts(trunk, value)
    path = save_pretrained_dir(model, None, tmp_path / "export", merge, value_head=head, critic=parts)
    assert_untouched(model, before)

    def saved(place):
        adapted = lora is not None and not merge
        return ModelConfig(str(checkpoint), adapter=str(place)) if adapted else ModelConfig(str(place))

    again, found = build_actor_critic(saved(path))
    torch.testing.assert_close(logits(again, ids), logits(model, ids), rtol=0, atol=1e-4)
    assert torch.equal(found.summary.weight, head.summary.weight)
    critic, own = build_critic(saved(path / "critic"))
    assert torch.equal(own.summary.weight, value.summary.weight)
    states, wanted = (m.eval()(ids).last_hidden_state for m in (critic, trunk))
    torch.testing.assert_close(states, wanted, rtol=0, atol=1e-4)
    if lora is None or merge:
        plain = AutoModelForCausalLM.from_pretrained(path)
        torch.testing.assert_close(logits(plain, ids), logits(model, ids), rtol=0, atol=1e-4)
