"""PPO as a module: every part against golden numbers, with a shared trunk and with a critic of its own."""

from dataclasses import replace
from itertools import pairwise

import lightning as L
import pytest
import torch

from lit_align.algorithms.collection import judge
from lit_align.algorithms.optim import OptimConfig
from lit_align.algorithms.ppo import PPO
from lit_align.algorithms.shaping import KLPenalty, ScoreShaping
from lit_align.batches import Forest
from lit_align.models.value_head import ValueHeadConfig, load_value_head
from lit_align.rollouts.sampling import Sampling
from lit_align.scoring.critic import ActorCritic, Critic
from lit_align.scoring.references import FromPath
from tests.algorithms.on_policy_runs import (
    GRADIENT,
    LOSS,
    digest,
    fit,
    golden_policy,
    golden_rollout,
    loss_and_gradients,
    no_reward,
    norm,
    rewarded,
)

PENALTIES = {"kl": "k1", "abs": "abs", "mse": "k2", "full": "full"}
# Not here: response masks (the peer keeps masked tokens in the recursion with value 0; ours skips them),
# right padding (nothing is padded), the second epoch, a dropped batch; tests/losses compares those.
STEPS = [
    "step_k1", "step_abs", "step_k2_mse", "step_full_kl", "step_whiten_rewards_gamma",
    "step_score_scaling", "step_score_scaling_no_norm_clip",
]  # fmt: skip
LOSSES = ["loss_clipped", "loss_clipped_tight"]


def module_of(hparams, golden_models):
    scaling = "none"
    if hparams["use_score_scaling"]:
        scaling = "normalise" if hparams["use_score_norm"] else "scale"
    module = PPO(
        golden_policy(golden_models),
        reference=FromPath(str(golden_models / "reference")),
        rewards=no_reward,
        kl=KLPenalty(
            hparams["init_kl_coef"], PENALTIES[hparams["kl_penalty"]], hparams["target"], hparams["horizon"]
        ),
        scores=ScoreShaping(scaling, hparams["score_clip"], whiten_rewards=hparams["whiten_rewards"]),
        gamma=hparams["gamma"],
        gae_lambda=hparams["lam"],
        clip_range=hparams["cliprange"],
        value_clip_range=hparams["cliprange_value"],
        value_coefficient=hparams["vf_coef"],
    )
    module.configure_model()
    module.policy.value_head = load_value_head(module.policy.model, golden_models / "value_head")
    return module


def check(module, experience, formula):
    for name in ("advantages", "returns"):
        expected = torch.tensor([x for row in formula[name] for x in row])
        torch.testing.assert_close(experience.token_columns[name], expected, rtol=1e-3, atol=1e-4)
    loss, grads, metrics = loss_and_gradients(module, experience)
    torch.testing.assert_close(loss, formula["loss"], **LOSS)
    torch.testing.assert_close(norm(grads), formula["grad_norm"], **GRADIENT)
    return metrics


@pytest.mark.parametrize("name", STEPS)
def test_a_step_on_given_completions_is_the_reference_numbers(golden, golden_models, name):
    content = golden("ppo_step")
    case = content["by_id"][name]
    rows = content["batches"][case["batch"]]["rows"]
    module = module_of(case["hparams"], golden_models)
    forest = golden_rollout(rows, old="old_logprobs")
    with torch.no_grad():
        forest = forest.with_token_column("old_logps", module.policy(forest).logps)
    experience, metrics = judge(module, forest, rewarded([[row["score"]] for row in rows]))
    formula = case["formula_f64"]
    kl = metrics["objective/kl"]
    torch.testing.assert_close((kl.value / kl.weight).item(), formula["metrics"]["objective/kl"], **LOSS)
    torch.testing.assert_close(module.control.value, formula["kl_coef_after"], rtol=1e-6, atol=0)
    check(module, experience, formula)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_an_older_policy_are_the_reference_numbers(golden, golden_models, name):
    content = golden("ppo_step")
    case = content["by_id"][name]
    rows, hparams = content["batches"][case["batch"]]["rows"], case["hparams"]
    module = module_of(hparams, golden_models)
    forest = golden_rollout(rows, old="old_logprobs")
    shift = hparams.get("old_logprobs_shift", 0.0)
    forest = forest.with_token_column("old_logps", forest.token_columns["old_logps"] + shift)
    values = torch.tensor([x for row in rows for x in row["old_values"]])
    forest = forest.with_token_column("values", values)
    experience, _ = judge(module, forest, rewarded([[row["score"]] for row in rows]))
    check(module, experience, case["formula_f64"])


def polite(completions, **rest):
    return [float("please" in text.lower()) for text in completions]


def build(**arguments):
    options = {"rewards": polite, "sampling": Sampling(12), "lr": 1e-3, "num_epochs": 2, "num_minibatches": 2}
    return PPO("lit-align/tiny", **(options | arguments))


@pytest.mark.parametrize("critic", ["shared", "lit-align/tiny"])
def test_a_run_moves_policy_and_critic(tmp_path, critic):
    module = build(critic=critic)
    module.configure_model()
    before = digest(module)
    _, steps = fit(module, tmp_path, steps=8, batch_size=8)
    moved = [n for n, p in digest(module).items() if not torch.equal(before[n], p)]
    heads = [n for n in moved if "value_head" in n]
    assert any("policy.model" in n for n in moved)
    assert heads == [
        f"{'policy' if critic == 'shared' else 'critic'}.value_head.summary.{k}" for k in ("weight", "bias")
    ]
    assert isinstance(module.policy, ActorCritic) == (critic == "shared")
    assert isinstance(module.critic, Critic) == (critic != "shared")
    # Four steps a rollout: the first of each is on the policy that sampled.
    assert [step["val/ratio"] == 1.0 for step in steps] == [True, False, False, False] * 2
    assert steps[0]["ratio/first_mean"] == pytest.approx(1.0, abs=1e-5)
    names = "objective/kl objective/scores objective/rlhf_reward objective/non_score_reward objective/entropy"
    assert set(names.split()) <= steps[0].keys()
    assert steps[0]["objective/kl"] == pytest.approx(0.0, abs=1e-3)


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


def test_the_rest_of_a_rollout_is_passed_over_when_the_policy_has_moved(tmp_path):
    module = build(num_epochs=6, num_minibatches=1, lr=1e-2, target_kl=1e-5)
    seen = []

    class Weights(L.Callback):
        def on_train_batch_end(self, trainer, module, *rest):
            seen.append((module.buffer.stopped, digest(module)))

    trainer, _ = fit(module, tmp_path, steps=8, batch_size=4, callbacks=[Weights()])
    stopped = [flag for flag, _ in seen]
    # The first update is on the policy that sampled, which has not moved; the second shows that it has.
    assert stopped == [False, True, True, True, True, True, False, True]
    for (before, one), (after, other) in pairwise(seen):
        same = all(torch.equal(one[n], other[n]) for n in one)
        assert same == (before and after)
    assert trainer.global_step == 8


def test_a_step_whose_ratios_run_away_teaches_nothing(golden, golden_models, caplog):
    """The peer's ``loss_ratio_threshold``, whose losses are zeroed there."""
    content = golden("ppo_step")
    case = content["by_id"]["loss_ratio_threshold"]
    rows, hparams = content["batches"][case["batch"]]["rows"], case["hparams"]
    shift = hparams["old_logprobs_shift"]
    forest = golden_rollout(rows, old="old_logprobs")
    forest = forest.with_token_column("old_logps", forest.token_columns["old_logps"] + shift)
    forest = forest.with_token_column("values", torch.tensor([x for row in rows for x in row["old_values"]]))
    sizes = {}
    for threshold in (hparams["ratio_threshold"], 1e6):
        module = module_of(hparams, golden_models)
        module.ratio_threshold = threshold
        experience, _ = judge(module, forest, rewarded([[row["score"]] for row in rows]))
        _, grads, metrics = loss_and_gradients(module, experience)
        ratio = (metrics["val/ratio"].value / metrics["val/ratio"].weight).item()
        assert hparams["ratio_threshold"] < ratio < 1e6
        module.before_update(module.own_optimizer())
        sizes[threshold] = norm(grads)
    assert sizes[hparams["ratio_threshold"]] == 0 == case["formula_f64"]["loss"]
    assert sizes[1e6] > 0
    assert f"above ratio_threshold {hparams['ratio_threshold']:g}" in caplog.text


def test_a_run_takes_no_step_once_the_ratios_run_away(tmp_path):
    """Every answer is good, so that every ratio grows: the second step of each rollout is above 1."""
    module = build(
        rewards=lambda completions, **rest: [1.0 for _ in completions],
        optim=OptimConfig("torch.optim.SGD", schedule="constant"),
        kl=KLPenalty(0.0),
        whiten_advantages=False,
        num_minibatches=1,
        lr=1e-2,
        ratio_threshold=1.0 + 1e-6,
    )
    seen = []

    class Weights(L.Callback):
        def on_train_batch_end(self, trainer, module, *rest):
            seen.append(digest(module))

    _, steps = fit(module, tmp_path, steps=4, batch_size=4, callbacks=[Weights()])
    assert steps[1]["val/ratio"] > 1 + 1e-6
    same = [all(torch.equal(one[n], other[n]) for n in one) for one, other in pairwise(seen)]
    assert same == [True, False, True]


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


def test_the_kl_coefficient_is_steered(tmp_path):
    module = build(kl=KLPenalty(0.1, target=0.5, horizon=10.0), num_epochs=1, num_minibatches=1)
    _, steps = fit(module, tmp_path, steps=3, batch_size=8)
    # Below its target at first: e = -0.2, and 8 completions of a horizon of 10.
    assert [s["objective/kl_coef"] for s in steps][:2] == pytest.approx([0.1, 0.1 * (1 - 0.2 * 0.8)])


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kl": KLPenalty(0.1), "completions": 0}, "completions is 0"),
        ({"clip_range": -0.1}, "negative"),
        ({"ratio_threshold": 1.0}, "ratio_threshold is 1.0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        build(**arguments)


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
