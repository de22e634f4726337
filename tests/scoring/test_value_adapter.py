"""A value adapter against a critic with a model of its own: values, gradients, and two trained adapters."""

import copy

import pytest
import torch

from lit_align.algorithms.optim import OptimConfig, build_optimizer
from lit_align.batches import Forest
from lit_align.models.build import build_causal_lm, enable_checkpointing
from lit_align.models.config import LoraConfig, ModelConfig
from lit_align.models.critic import build_critic
from lit_align.models.export import critic_parts, save_pretrained_dir
from lit_align.models.value_head import ValueHeadConfig
from lit_align.outputs import LossOutput
from lit_align.scoring.adapters import adapter_tensors
from lit_align.scoring.critic import Critic
from lit_align.scoring.policy import Policy
from lit_align.scoring.references import AdapterOff, FrozenCopy, default_reference
from lit_align.scoring.value_adapter import ValueAdapter

ARCHITECTURE = {
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
GENTLE = LoraConfig(r=4, alpha=1, extra={"init_lora_weights": False})
OTHER = LoraConfig(r=3, alpha=1, targets=["v_proj", "down_proj"], extra={"init_lora_weights": False})
RANDOM = ValueHeadConfig("normal", std=0.3)


def forest() -> Forest:
    return Forest.from_lists([[5, 6, 7], [8], []], [[[9, 10, 2], [11, 2]], [[12, 13, 14, 2], []], [[15, 2]]])


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("base")
    build_causal_lm(ARCHITECTURE).double().save_pretrained(path)
    return str(path)


def pair(base, lora=OTHER, checkpointing=False):
    config = ModelConfig(base, lora=GENTLE, gradient_checkpointing=checkpointing)
    policy = Policy(build_causal_lm(config)).double().train()
    return policy, ValueAdapter(policy, lora, RANDOM, seed=3).double().train()


def apart(base, policy, critic, tmp_path):
    """The same two networks as two models."""
    path = save_pretrained_dir(policy.model, None, tmp_path / "out", critic=critic_parts(critic))
    one = Policy(build_causal_lm(ModelConfig(base, adapter=str(path)))).double().train()
    two = Critic(*build_critic(ModelConfig(base, adapter=str(path / "critic")))).double().train()
    return one, two


def logps_loss(scores, batch):
    return LossOutput((scores.logps**2 * batch.weights).sum(), batch.weights.sum(), {})


def values_loss(values, batch):
    return LossOutput(((values - 1) ** 2 * batch.weights).sum(), batch.weights.sum(), {})


def trained(model, name):
    return {key: p.grad.clone() for key, p in adapter_tensors(model, name).items()}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("order", ["policy first", "critic first"])
def test_values_and_gradients_equal_those_of_two_models(base, checkpointing, order, tmp_path):
    policy, critic = pair(base, checkpointing=checkpointing)
    one, two = apart(base, policy, critic, tmp_path)
    reference = AdapterOff()
    reference.attach(policy)
    batch = forest()
    with torch.no_grad():
        torch.testing.assert_close(critic(batch), two(batch), rtol=1e-6, atol=1e-6)
    runs = [lambda: policy(batch, loss=logps_loss).total, lambda: critic(batch, loss=values_loss).total]
    totals = [run() for run in (runs if order == "policy first" else runs[::-1])]
    reference.score(batch)
    sum(totals).backward()
    (one(batch, loss=logps_loss).total + two(batch, loss=values_loss).total).backward()
    for mine, theirs in (
        (trained(policy.model, "default"), trained(one.model, "default")),
        (trained(policy.model, "value"), trained(two.model, "default")),
    ):
        assert len(mine) == len(theirs)
        assert any(grad.abs().max() > 1e-3 for grad in mine.values())
        for ours, alone in zip(mine.values(), theirs.values(), strict=True):
            torch.testing.assert_close(ours, alone, rtol=1e-6, atol=1e-6)
    for ours, alone in zip(critic.value_head.parameters(), two.value_head.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, alone.grad, rtol=1e-6, atol=1e-6)


def test_the_check_above_sees_a_recomputation_with_the_wrong_adapter(base):
    """With an ordinary checkpoint the critic's blocks are recomputed as the policy's."""
    policy, critic = pair(base, lora=None, checkpointing=True)
    grads = []
    for spoil in (False, True):
        if spoil:
            enable_checkpointing(policy.model)
        policy.zero_grad()
        critic(forest(), loss=values_loss).total.backward()
        grads.append([p.grad for p in adapter_tensors(policy.model, "value").values()])
    right, wrong = grads
    assert all(grad is not None for grad in right)
    assert any(w is None or not torch.allclose(r, w, rtol=1e-3) for r, w in zip(right, wrong, strict=True))


def test_both_adapters_are_trained_together(base):
    policy, critic = pair(base, lora=None)
    module = torch.nn.ModuleDict({"policy": policy, "critic": critic})
    wanted = [
        *adapter_tensors(policy.model, "default").values(),
        *adapter_tensors(policy.model, "value").values(),
        *critic.value_head.parameters(),
    ]
    assert {id(p) for p in module.parameters() if p.requires_grad} == {id(p) for p in wanted}
    optimizer = build_optimizer(module, OptimConfig(name="torch.optim.SGD"), lr=0.1)
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == {id(p) for p in wanted}
    before = [p.detach().clone() for p in wanted]
    for _ in range(2):
        optimizer.zero_grad()
        total = policy(forest(), loss=logps_loss).total + critic(forest(), loss=values_loss).total
        (total / 100).backward()
        optimizer.step()
    assert all(not torch.equal(p, old) for p, old in zip(wanted, before, strict=True))
    assert list(policy.model.active_adapters) == ["default"]
    assert all(p.requires_grad for p in wanted)


def test_a_new_value_adapter_says_what_the_base_says(base):
    """Its second matrices are zero, and the reference is the base as without it."""
    policy, critic = pair(base, lora=LoraConfig(r=2))
    trunk, head = build_critic(base)
    separate = Critic(trunk.double(), head.double())
    separate.value_head.load_state_dict(critic.value_head.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(critic(forest()), separate(forest()), rtol=1e-6, atol=1e-6)
    assert isinstance(default_reference(policy), FrozenCopy)
    reference = FrozenCopy()
    reference.attach(policy)
    assert reference.frozen is None, "the adapter is copied, not the model"


def test_a_raised_error_leaves_the_policy_s_adapter_on(base):
    policy, critic = pair(base)
    critic.value_head = torch.nn.Linear(7, 1)
    flags = [p.requires_grad for p in policy.parameters()]
    with pytest.raises(RuntimeError):
        critic(forest())
    assert list(policy.model.active_adapters) == ["default"]
    assert [p.requires_grad for p in policy.parameters()] == flags


def test_a_saved_value_adapter_goes_on(base, tmp_path):
    policy, critic = pair(base)
    path = save_pretrained_dir(policy.model, None, tmp_path / "out", critic=critic_parts(critic))
    fresh = Policy(build_causal_lm(ModelConfig(base, adapter=str(path)))).double().train()
    again = ValueAdapter(fresh, path=str(path / "critic")).double()
    assert torch.equal(again(forest()), critic(forest()))
    assert all(p.requires_grad for p in adapter_tensors(fresh.model, "value").values())


def test_a_policy_without_adapters_is_refused(base):
    with pytest.raises(ValueError, match="the policy has no adapters"):
        ValueAdapter(Policy(build_causal_lm(base)))


def test_a_second_of_the_same_name_is_refused(base):
    policy, _ = pair(base)
    with pytest.raises(ValueError, match="already"):
        ValueAdapter(policy)


def test_a_copy_of_policy_and_critic_belongs_together(base):
    """Deep copies (a trainer spawns processes from one) keep the tie."""
    module = torch.nn.ModuleDict(dict(zip(("policy", "critic"), pair(base), strict=True)))
    twin = copy.deepcopy(module)
    assert twin["critic"].model is twin["policy"].model
