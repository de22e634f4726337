"""PPO as a module: every part against golden numbers, with a shared trunk and with a critic of its own."""

from itertools import pairwise
from types import SimpleNamespace

import lightning as L
import pytest
import torch

from lit_align.algorithms.collection import judge
from lit_align.algorithms.optim import OptimConfig
from lit_align.algorithms.ppo import PPO
from lit_align.algorithms.shaping import KLPenalty, ScoreShaping
from lit_align.models.value_head import load_value_head
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


def test_a_threshold_is_refused_where_gradients_are_out_of_reach(monkeypatch):
    class Keeps:
        def scale_gradients(self, scale): ...

        def forget_gradients(self): ...

    monkeypatch.setattr(PPO, "trainer", SimpleNamespace(strategy=Keeps()))
    with pytest.raises(ValueError, match="ratio_threshold is 10, but Keeps keeps gradients to itself"):
        build(ratio_threshold=10.0).setup("fit")


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


def test_the_kl_coefficient_is_steered(tmp_path):
    module = build(kl=KLPenalty(0.1, target=0.5, horizon=10.0), num_epochs=1, num_minibatches=1)
    _, steps = fit(module, tmp_path, steps=3, batch_size=8)
    # Below its target at first: e = -0.2, and 8 completions of a horizon of 10.
    assert [s["objective/kl_coef"] for s in steps][:2] == pytest.approx([0.1, 0.1 * (1 - 0.2 * 0.8)])


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
