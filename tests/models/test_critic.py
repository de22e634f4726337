"""Where a critic's weights come from."""

import pytest
import torch
from peft import PeftModel

from lit_align.models.build import build_causal_lm, build_reward_model, build_trunk
from lit_align.models.config import LoraConfig, ModelConfig
from lit_align.models.critic import build_actor_critic, build_critic, saved_beside
from lit_align.models.value_head import ValueHeadConfig, build_value_head, load_value_head, save_value_head

RANDOM = ValueHeadConfig("normal", std=0.5, dropout=0.1)
LORA = LoraConfig(r=4, extra={"init_lora_weights": False})


def states(model, ids):
    with torch.no_grad():
        return model.base_model(ids).last_hidden_state if not hasattr(model, "peft_config") else None


def same(one, two):
    pairs = zip(one.state_dict().values(), two.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_from_a_language_model(checkpoint, ids):
    trunk, head = build_critic(str(checkpoint), RANDOM)
    assert trunk.get_output_embeddings() is None, "no head that nobody trains"
    assert torch.equal(states(trunk, ids), states(build_causal_lm(str(checkpoint)), ids))
    assert same(head, build_value_head(trunk, RANDOM))
    assert head.dropout.p == 0.1


def test_from_a_reward_model_with_its_score(checkpoint, ids, tmp_path):
    reward = build_reward_model(str(checkpoint))
    reward.save_pretrained(tmp_path)
    trunk, head = build_critic(str(tmp_path))
    assert torch.equal(states(trunk, ids), states(reward, ids))
    assert torch.equal(head.summary.weight, reward.score.weight)
    assert not head.summary.bias.any()
    assert head.summary.weight is not reward.score.weight


def test_from_memory(checkpoint, ids):
    reward = build_reward_model(str(checkpoint))
    trunk, head = build_critic(reward)
    assert trunk is reward.model
    assert torch.equal(head.summary.weight, reward.score.weight)
    language_model = build_causal_lm(str(checkpoint))
    assert build_critic(language_model)[0] is language_model.model


def test_from_a_saved_critic(checkpoint, tmp_path):
    trunk, head = build_critic(str(checkpoint), RANDOM)
    trunk.save_pretrained(tmp_path)
    save_value_head(head, tmp_path)
    again, found = build_critic(str(tmp_path))
    assert same(trunk, again)
    assert same(head, found)


def test_from_random_weights(architecture):
    one, two = (build_critic(ModelConfig(architecture=architecture, seed=seed))[0] for seed in (1, 1))
    assert same(one, two)


def test_adapters_on_the_trunk(checkpoint, tmp_path):
    config = ModelConfig(str(checkpoint), lora=LORA)
    trunk, head = build_critic(config, RANDOM)
    assert isinstance(trunk, PeftModel)
    trainable = [name for name, p in trunk.named_parameters() if p.requires_grad]
    assert trainable
    assert all("lora_" in name for name in trainable)
    trunk.save_pretrained(tmp_path)
    save_value_head(head, tmp_path)
    again, found = build_critic(ModelConfig(str(checkpoint), adapter=str(tmp_path)))
    assert same(trunk, again)
    assert same(head, found)


@pytest.mark.parametrize("start", ["reward", "language model"])
def test_from_an_adapter_made_for_another_model(start, checkpoint, ids, tmp_path):
    """The critic begins with the states of the model that the adapter belongs to."""
    build = build_reward_model if start == "reward" else build_causal_lm
    model = build(ModelConfig(str(checkpoint), lora=LORA, seed=5))
    model.save_pretrained(tmp_path)
    trunk, head = build_critic(ModelConfig(str(checkpoint), adapter=str(tmp_path)))
    with torch.no_grad():
        ours = trunk.get_base_model().base_model(ids).last_hidden_state
        theirs = model.get_base_model().base_model(ids).last_hidden_state
        base = build_trunk(str(checkpoint))(ids).last_hidden_state
    torch.testing.assert_close(ours, theirs)
    assert not torch.allclose(ours, base, atol=1e-3)
    trainable = {name for name, p in trunk.named_parameters() if p.requires_grad}
    assert trainable
    assert all("lora_" in name for name in trainable), "the score head is not trained twice"
    if start == "reward":
        trained = model.get_base_model().score.modules_to_save["default"].weight
        assert torch.equal(head.summary.weight, trained)


def test_actor_critic_finds_the_head_beside_its_model(checkpoint, tmp_path):
    model, head = build_actor_critic(str(checkpoint), RANDOM)
    assert same(model, build_causal_lm(str(checkpoint)))
    model.save_pretrained(tmp_path)
    save_value_head(head, tmp_path)
    again, found = build_actor_critic(str(tmp_path), ValueHeadConfig(dropout=0.3))
    assert same(model, again)
    assert same(head.summary, found.summary)
    assert found.dropout.p == 0.3
    fresh = build_actor_critic(ModelConfig(str(tmp_path), from_scratch=True), ValueHeadConfig())[1]
    assert not fresh.summary.weight.any()


def test_actor_critic_finds_the_head_beside_its_adapter(checkpoint, tmp_path):
    model, head = build_actor_critic(ModelConfig(str(checkpoint), lora=LORA), RANDOM)
    model.save_pretrained(tmp_path)
    save_value_head(head, tmp_path)
    found = build_actor_critic(ModelConfig(str(checkpoint), adapter=str(tmp_path)))[1]
    assert same(head, found)


def test_a_model_on_the_hub_brings_its_head(checkpoint, tmp_path, monkeypatch):
    """The Hub is asked for that one file, at the revision of the model."""
    model, head = build_actor_critic(str(checkpoint), RANDOM)
    asked = []

    def download(name, file, revision):
        asked.append((name, file, revision))
        return str(save_value_head(head, tmp_path))

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert saved_beside(ModelConfig("org/name", revision="abc")) == tmp_path
    assert asked == [("org/name", "value_head.safetensors", "abc")]
    assert same(load_value_head(model, tmp_path), build_value_head(model, ValueHeadConfig("normal", std=0.5)))


@pytest.mark.parametrize(
    ("error", "level"), [("LocalEntryNotFoundError", "WARNING"), ("EntryNotFoundError", "INFO")]
)
def test_a_model_on_the_hub_without_one(error, level, monkeypatch, caplog):
    from huggingface_hub import errors

    def absent(*arguments, **more):
        raise getattr(errors, error)("nothing there")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", absent)
    with caplog.at_level("INFO"):
        assert saved_beside(ModelConfig("org/name")) is None
    (record,) = [r for r in caplog.records if "value head" in r.message]
    assert record.levelname == level
    assert "a new one begins" in record.message
