"""One base in memory for policy, reference, reward and critic, against as many separate models."""

import pytest
import torch

from lit_align.batches import Forest
from lit_align.models.build import build_causal_lm, build_reward_model
from lit_align.models.config import LoraConfig, ModelConfig
from lit_align.models.critic import build_critic
from lit_align.models.export import critic_parts, save_pretrained_dir
from lit_align.models.value_head import ValueHeadConfig
from lit_align.outputs import LossOutput
from lit_align.scoring.adapters import adapter_tensors, base_tensors
from lit_align.scoring.critic import Critic
from lit_align.scoring.policy import Policy, RewardScorer
from lit_align.scoring.references import AdapterOff, NamedAdapter
from lit_align.scoring.reward_adapter import RewardAdapter
from lit_align.scoring.value_adapter import ValueAdapter

ARCHITECTURE = {
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
TARGETS = ["q_proj", "v_proj", "up_proj", "down_proj"]


def lora(rank, *targets):
    return LoraConfig(r=rank, alpha=1, targets=list(targets), extra={"init_lora_weights": False})


def forest() -> Forest:
    return Forest.from_lists([[5, 6, 7], [8], []], [[[9, 10, 2], [11, 2]], [[12, 13, 14, 2], []], [[15, 2]]])


class Together:
    """All parts on the policy's base."""

    def __init__(self, base, folder, quantization=None):
        self.base, self.quantization = base, quantization
        reward = self.describe(lora(3, "q_proj", "down_proj"), seed=1)
        separate = build_reward_model(reward)
        separate.get_base_model().score.modules_to_save["default"].weight.data.normal_()
        self.reward_path = str(save_pretrained_dir(separate, None, folder / "reward"))
        named = build_causal_lm(self.describe(lora(2, *TARGETS), seed=2))
        self.named_path = str(save_pretrained_dir(named, None, folder / "named"))
        self.separate_reward = RewardScorer(separate).eval()
        self.policy = Policy(build_causal_lm(self.describe(lora(4, *TARGETS), seed=3))).train()
        self.named = NamedAdapter("named", self.named_path)
        self.named.attach(self.policy)
        self.reward = RewardAdapter(self.reward_path)
        self.reward.attach(self.policy)
        head = ValueHeadConfig("normal", std=0.3)
        self.critic = ValueAdapter(self.policy, lora(5, "v_proj", "up_proj"), head, seed=4)
        self.off = AdapterOff()
        self.off.attach(self.policy)
        self.path = save_pretrained_dir(
            self.policy.model, None, folder / "policy", critic=critic_parts(self.critic)
        )

    def describe(self, adapters=None, **more):
        quantization = None if self.quantization is None else {"kind": self.quantization}
        return ModelConfig(self.base, lora=adapters, quantization=quantization, **more)

    def loss(self, policy, critic):
        """Everything on one graph, with the rewards and references asked in the middle."""
        batch = forest()
        actor = policy(batch, loss=lambda s, b: LossOutput((s.logps**2).sum(), b.weights.sum(), {}))
        self.reward(batch)
        self.off.score(batch)
        values = critic(batch, loss=lambda v, b: LossOutput(((v - 1) ** 2).sum(), b.weights.sum(), {}))
        self.named.score(batch)
        return actor.total + values.total


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("base")
    build_causal_lm(ARCHITECTURE).save_pretrained(path)
    return str(path)


def check(parts, tolerance):
    batch = forest()
    alone = Policy(build_causal_lm(parts.describe(adapter=str(parts.path)))).train()
    named = Policy(build_causal_lm(parts.describe(adapter=parts.named_path))).eval()
    plain = Policy(build_causal_lm(parts.describe())).eval()
    critic = Critic(*build_critic(parts.describe(adapter=str(parts.path / "critic")))).train()
    with torch.no_grad():
        for ours, theirs in (
            (parts.policy(batch).logps, alone(batch).logps),
            (parts.off.score(batch), plain(batch).logps),
            (parts.named.score(batch), named(batch).logps),
            (parts.reward(batch), parts.separate_reward(batch)),
            (parts.critic(batch), critic(batch)),
        ):
            torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    before = {name: t.clone() for name, t in base_tensors(parts.policy.model).items()}
    parts.loss(parts.policy, parts.critic).backward()
    parts.loss(alone, critic).backward()
    for name, model in (("default", alone.model), ("value", critic.model)):
        mine, theirs = adapter_tensors(parts.policy.model, name), adapter_tensors(model, "default")
        for ours, own in zip(mine.values(), theirs.values(), strict=True):
            assert float(own.grad.abs().max()) > 0
            torch.testing.assert_close(ours.grad, own.grad, rtol=tolerance, atol=tolerance * 10)
    for frozen in ("named", "reward"):
        assert all(p.grad is None for p in adapter_tensors(parts.policy.model, frozen).values())
    for key, value in base_tensors(parts.policy.model).items():
        assert torch.equal(value, before[key]), key


def test_every_part_is_what_it_would_be_as_a_model_of_its_own(base, tmp_path):
    check(Together(base, tmp_path), 1e-6)


@pytest.mark.slow
def test_on_a_base_in_four_bits(base, tmp_path):
    pytest.importorskip("bitsandbytes")
    check(Together(base, tmp_path, "nf4"), 1e-5)


def test_the_base_is_there_once(base, tmp_path):
    """Beside the base only adapters, each a few per cent of it."""
    parts = Together(base, tmp_path)
    whole = sum(p.numel() for p in build_causal_lm(base).parameters())
    modules = torch.nn.ModuleList([parts.policy, parts.off, parts.named, parts.reward, parts.critic])
    held = sum(p.numel() for p in modules.parameters())
    adapters = sum(
        t.numel()
        for name in ("default", "named", "reward", "value")
        for t in adapter_tensors(parts.policy.model, name).values()
    )
    heads = 64 + 65
    assert held == whole + adapters + heads
