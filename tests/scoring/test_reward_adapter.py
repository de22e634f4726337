"""A reward adapter on the policy's base scores as the reward model it was saved from."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lit_align.batches import Forest
from lit_align.models.build import build_causal_lm, build_reward_model
from lit_align.models.config import LoraConfig, ModelConfig
from lit_align.models.critic import build_actor_critic
from lit_align.models.export import save_pretrained_dir
from lit_align.models.value_head import ValueHeadConfig
from lit_align.scoring.critic import ActorCritic
from lit_align.scoring.policy import Policy, RewardScorer
from lit_align.scoring.references import AdapterOff
from lit_align.scoring.reward_adapter import RewardAdapter

ARCHITECTURE = {
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
LORA = LoraConfig(r=4, alpha=4, dropout=0.2, extra={"init_lora_weights": False})


def forest() -> Forest:
    return Forest.from_lists([[5, 6, 7], [8], []], [[[9, 10, 2], [11, 2]], [[12, 13, 14, 2], []], [[15, 2]]])


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("base")
    build_causal_lm(ARCHITECTURE).save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def reward(base, tmp_path_factory) -> tuple[RewardScorer, Path]:
    """A trained reward model with LoRA, other targets and rank than the policy's, and its export."""
    lora = LoraConfig(r=3, targets=["q_proj", "up_proj"], extra={"init_lora_weights": False})
    model = build_reward_model(ModelConfig(base, lora=lora, seed=7))
    with torch.no_grad():
        drawn = torch.Generator().manual_seed(0)
        model.get_base_model().score.modules_to_save["default"].weight.normal_(generator=drawn)
    path = save_pretrained_dir(model, None, tmp_path_factory.mktemp("reward") / "export")
    return RewardScorer(model).eval(), path


def policy(base, shared=False):
    if shared:
        config = ModelConfig(base, lora=LORA)
        return ActorCritic(*build_actor_critic(config, ValueHeadConfig("normal"))).train()
    return Policy(build_causal_lm(ModelConfig(base, lora=LORA))).train()


@pytest.mark.parametrize("layout", ["auto", "padded"])
@pytest.mark.parametrize("shared", [False, True])
def test_rewards_equal_those_of_the_separate_model(base, reward, layout, shared):
    scorer, path = reward
    actor = policy(base, shared)
    # Both in one layout: another layout rounds in another way.
    actor.layout = scorer.layout = layout
    adapter = RewardAdapter(str(path))
    adapter.attach(actor)
    with torch.no_grad():
        torch.testing.assert_close(adapter(forest()), scorer(forest()), rtol=1e-6, atol=1e-6)
    assert adapter(forest()).dtype == torch.float32


def test_the_policy_stays_as_it_was(base, reward):
    actor = policy(base)
    flags = {name: p.requires_grad for name, p in actor.named_parameters()}
    with torch.no_grad():
        before = actor.eval()(forest()).logps
    actor.train()
    adapter = RewardAdapter(str(reward[1]))
    adapter.attach(actor)
    adapter(forest())
    after = dict(actor.named_parameters())
    assert {name: after[name].requires_grad for name in flags} == flags
    assert not any(p.requires_grad for name, p in after.items() if name not in flags)
    assert not any(p.requires_grad for p in adapter.parameters())
    assert all(m.training for m in actor.modules() if isinstance(m, torch.nn.Dropout))
    assert list(actor.model.active_adapters) == ["default"]
    with torch.no_grad():
        assert torch.equal(actor.eval()(forest()).logps, before)


def test_a_reward_between_forward_and_backward_changes_no_gradient(base, reward):
    actor = policy(base)
    adapter = RewardAdapter(str(reward[1]))
    adapter.attach(actor)
    found = []
    for ask in (False, True):
        actor.zero_grad()
        torch.manual_seed(0)
        total = actor(forest()).logps.sum()
        if ask:
            adapter(forest())
        total.backward()
        found.append([p.grad.clone() for p in actor.parameters() if p.requires_grad])
    for one, two in zip(*found, strict=True):
        assert torch.equal(one, two)


def test_beside_it_the_reference_is_still_the_base(base, reward):
    actor = policy(base)
    adapter = RewardAdapter(str(reward[1]))
    adapter.attach(actor)
    reference = AdapterOff()
    reference.attach(actor)
    with torch.no_grad():
        plain = Policy(build_causal_lm(base).eval())(forest()).logps
    torch.testing.assert_close(reference.score(forest()), plain, rtol=1e-6, atol=1e-6)


def test_what_does_not_fit_is_refused(base, reward, tmp_path):
    with pytest.raises(ValueError, match="the policy has no adapters"):
        RewardAdapter(str(reward[1])).attach(Policy(build_causal_lm(base)))
    actor = policy(base)
    with pytest.raises(ValueError, match="already"):
        RewardAdapter(str(reward[1]), name="default").attach(actor)
    with pytest.raises(ValueError, match="holds no adapter"):
        RewardAdapter(base).attach(actor)
    actor.model.save_pretrained(tmp_path / "policy")
    with pytest.raises(ValueError, match="no score head"):
        RewardAdapter(str(tmp_path / "policy"), name="a").attach(actor)
    other = build_reward_model(
        ModelConfig(architecture=ARCHITECTURE | {"num_hidden_layers": 3}, lora=LoraConfig(r=2))
    )
    save_pretrained_dir(other, None, tmp_path / "deep")
    with pytest.raises(ValueError, match=r"does not fit|not found"):
        RewardAdapter(str(tmp_path / "deep"), name="b").attach(policy(base))


def test_a_lost_weight_is_noticed(base, reward, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in reward[1].iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    tensors = load_file(broken / "adapter_model.safetensors")
    lost = next(key for key in tensors if "lora_A" in key)
    save_file({k: v for k, v in tensors.items() if k != lost}, broken / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="1 weights are missing"):
        RewardAdapter(str(broken)).attach(policy(base))


def test_before_attaching_it_says_so():
    with pytest.raises(RuntimeError, match="call attach"):
        RewardAdapter("somewhere")(forest())
