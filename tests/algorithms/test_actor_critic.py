"""Critics of every kind beside a policy: their values, and what a completion is worth by them."""

from dataclasses import replace

import pytest
import torch

from lit_align.algorithms.collection import judge
from lit_align.algorithms.ppo import PPO
from lit_align.algorithms.shaping import KLPenalty, ScoreShaping
from lit_align.batches import Forest
from lit_align.models.value_head import ValueHeadConfig
from lit_align.rollouts.sampling import Sampling
from tests.algorithms.on_policy_runs import (
    digest,
    fit,
    golden_policy,
    golden_rollout,
    loss_and_gradients,
    no_reward,
    rewarded,
)


def polite(completions, **rest):
    return [float("please" in text.lower()) for text in completions]


def build(**arguments):
    options = {"rewards": polite, "sampling": Sampling(12), "lr": 1e-3, "num_epochs": 2, "num_minibatches": 2}
    return PPO("lit-align/tiny", **(options | arguments))


def test_adapters_only(tmp_path):
    """One base: policy adapter, the reference is the base, a reward adapter, and a value adapter."""
    from lit_align.models.build import build_reward_model
    from lit_align.models.export import save_pretrained_dir
    from lit_align.scoring.adapters import adapter_tensors, base_tensors
    from lit_align.scoring.references import AdapterOff

    policy = {"path": "lit-align/tiny", "lora": {"r": 4}}
    reward = build_reward_model({"path": "lit-align/tiny", "lora": {"r": 2}, "seed": 3})
    path = save_pretrained_dir(reward, None, tmp_path / "reward")
    module = PPO(
        policy, rewards={"adapter": str(path)}, critic="adapter", sampling=Sampling(max_new_tokens=8)
    )
    module.configure_model()
    assert isinstance(module.reference, AdapterOff)
    base = {name: t.clone() for name, t in base_tensors(module.policy.model).items()}
    before = digest(module)
    trainer, steps = fit(module, tmp_path, steps=4, batch_size=4)
    adapters = list(module.policy.model.peft_config)
    assert len(adapters) == 3
    for name in ("default", "value"):
        for key, tensor in adapter_tensors(module.policy.model, name).items():
            assert tensor.requires_grad
            # A second matrix is zero at first, so that the first one has no gradient yet in the first step.
            assert not torch.equal(tensor, before["policy.model." + key.replace("weight", f"{name}.weight")])
    assert all(torch.equal(t, base[name]) for name, t in base_tensors(module.policy.model).items())
    assert steps[0]["val/ratio"] == 1.0
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert {key.rpartition(".")[0] for key in saved if ".value." in key}
    assert not any("reward" in key for key in saved)


@pytest.mark.parametrize("critic", ["shared", "adapter"])
def test_an_encoder_decoder_model(tmp_path, critic):
    """Short completions are rewarded: policy and critic move, in the first step from the sampling policy."""
    t5 = {
        "model_type": "t5", "vocab_size": 1024, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1,
        "num_heads": 4, "decoder_start_token_id": 0, "initializer_factor": 0.3,
    }  # fmt: skip
    policy = {"architecture": t5, "lora": {"r": 2} if critic == "adapter" else None}
    module = PPO(
        policy, "lit-align/tiny", rewards=shortness, critic=critic, sampling=Sampling(max_new_tokens=6),
        num_epochs=1, num_minibatches=2, lr=1e-2,
    )  # fmt: skip
    module.configure_model()
    before = digest(module)
    _, steps = fit(module, tmp_path, steps=2)
    moved = {n for n, p in digest(module).items() if not torch.equal(before[n], p)}
    assert any(n.endswith("value_head.summary.weight") for n in moved)
    assert any("decoder" in n for n in moved)
    assert [step["val/ratio"] == 1.0 for step in steps] == [True, False]
    assert steps[0]["ratio/first_mean"] == pytest.approx(1.0, abs=1e-5)


def shortness(completions, **columns):
    return [-float(len(text)) for text in completions]


def test_the_critic_is_done_before_the_policy_begins():
    """Otherwise the activations of both would be in memory together."""
    module = build(critic="lit-align/tiny")
    module.configure_model()
    order = []
    module.critic.register_forward_hook(lambda *_: order.append("critic"))
    module.policy.register_forward_pre_hook(lambda *_: order.append("policy"))
    batch = Forest.from_lists([[5, 6]], [[[7, 8, 2]]])
    for name in ("old_logps", "advantages", "returns", "values"):
        batch = batch.with_token_column(name, torch.full((3,), 0.5))
    _, gradients, _ = loss_and_gradients(module, batch)
    assert order == ["critic", "policy"]
    assert {name.partition(".")[0] for name in gradients} == {"critic", "policy"}


def test_values_of_the_generator_are_those_of_the_critic(tmp_path):
    from lit_align.algorithms.collection import generate

    module = build()
    module.configure_model()
    with torch.no_grad():
        module.policy.value_head.summary.weight.normal_()
    prompts = Forest.from_lists([[5, 6, 7], [8, 9]], [[], []])
    forest = generate(module, prompts, "test")
    with torch.no_grad():
        values = module.policy.eval()(forest).values
    torch.testing.assert_close(forest.token_columns["values"], values, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("critic", ["shared", "lit-align/tiny", "adapter"])
def test_what_follows_a_cut_off_completion_is_what_the_critic_says(critic):
    """With γ = λ = 1 and no penalty a return is the score, and the value of the state after the last token.

    That value is the one at a token that is put behind.
    """
    lora = {"path": "lit-align/tiny", "lora": {"r": 2, "extra": {"init_lora_weights": False}}}
    module = PPO(
        lora if critic == "adapter" else "lit-align/tiny", rewards=no_reward, critic=critic,
        value_head=ValueHeadConfig("normal", std=0.3), kl=KLPenalty(0.0), gae_lambda=1.0,
        whiten_advantages=False, bootstrap_truncated=True,
    )  # fmt: skip
    module.configure_model()
    ended = [torch.tensor([True, False]), torch.tensor([True, True])]
    batch = Forest.from_lists([[5, 6]], [[[7, 8, 2], [9, 10]]])
    batch = batch.with_token_column("old_logps", torch.full((5,), -1.0))
    returns = []
    for finished in ended:
        experience, _ = judge(
            module, replace(batch, completion_columns={"finished": finished}), rewarded([[1.0], [2.0]])
        )
        returns.append(experience.token_columns["returns"])
    longer = Forest.from_lists([[5, 6]], [[[7, 8, 2], [9, 10, 11]]])
    with torch.no_grad():
        module.eval()
        values = module.policy(longer).values if module.critic is None else module.critic(longer)
    assert values[-1].abs() > 1e-3
    last = values[-1].item()
    torch.testing.assert_close(returns[0], torch.tensor([1.0, 1.0, 1.0, 2.0 + last, 2.0 + last]))
    torch.testing.assert_close(returns[1], torch.tensor([1.0, 1.0, 1.0, 2.0, 2.0]))


def test_per_token_rewards_stand_where_they_were_given(golden_models):
    from dataclasses import replace

    module = PPO(
        golden_policy(golden_models), rewards=no_reward, kl=KLPenalty(0.0), gae_lambda=1.0,
        whiten_advantages=False,
    )  # fmt: skip
    module.configure_model()
    rows = [{"prompt_ids": [5, 6], "completion_ids": [7, 8, 2], "old": [-1.0] * 3}]
    result = rewarded([[6.0]])
    result = replace(result, scores=torch.zeros(1, 1), token_rewards=torch.tensor([1.0, 2.0, 3.0]))
    experience, _ = judge(module, golden_rollout(rows, old="old"), result)
    torch.testing.assert_close(experience.token_columns["returns"], torch.tensor([6.0, 5.0, 3.0]))


def test_a_completion_that_was_cut_off_pays_for_it(golden_models):
    module = PPO(
        golden_policy(golden_models), rewards=no_reward, kl=KLPenalty(0.0),
        scores=ScoreShaping(missing_eos_penalty=2.0),
    )  # fmt: skip
    module.configure_model()
    rows = [
        {"prompt_ids": [5, 6], "completion_ids": [7, 2], "old": [-1.0] * 2},
        {"prompt_ids": [5, 7], "completion_ids": [7, 8], "old": [-1.0] * 2},
    ]
    _, metrics = judge(module, golden_rollout(rows, old="old"), rewarded([[1.0], [1.0]]))
    assert metrics["objective/scores"].value.item() == pytest.approx(1.0 - 1.0)


@pytest.mark.parametrize("critic", ["lit-align/tiny", "adapter"])
def test_values_of_a_rollout_are_made_without_dropout(critic):
    module = PPO(
        {"path": "lit-align/tiny", "lora": {"r": 2, "dropout": 0.5}}
        if critic == "adapter"
        else "lit-align/tiny",
        rewards=no_reward,
        critic=critic,
        value_head=ValueHeadConfig("normal", dropout=0.5),
    )
    module.configure_model()
    module.train()
    batch = Forest.from_lists([[5, 6]], [[[7, 8, 2]]]).with_token_column("old_logps", torch.full((3,), -1.0))
    batch = replace(batch, completion_columns={"finished": torch.ones(1, dtype=torch.bool)})
    experience, _ = judge(module, batch, rewarded([[1.0]]))
    assert module.critic.training
    assert module.policy.training
    module.eval()
    with torch.no_grad():
        torch.testing.assert_close(experience.token_columns["values"], module.critic(batch))


def test_an_unscored_completion_is_in_no_divergence():
    """However unlikely its tokens were: a reference says nothing of tokens without weight."""
    module = PPO("lit-align/tiny", rewards=no_reward, kl=KLPenalty(0.1, "k3", target=1.0))
    module.configure_model()
    batch = Forest.from_lists([[5, 6]], [[[7, 2], [8, 2]]])
    batch = batch.with_token_column("old_logps", torch.tensor([-200.0, -200.0, -1.0, -1.0]))
    batch = replace(batch, completion_columns={"finished": torch.ones(2, dtype=torch.bool)})
    _, metrics = judge(module, batch, rewarded([[None], [1.0]]))
    assert metrics["objective/kl"].value.isfinite()
