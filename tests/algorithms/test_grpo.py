"""GRPO and its family as modules, against golden numbers and what must hold by definition."""

from types import SimpleNamespace

import pytest
import torch

from lit_align.algorithms.base import AlignModule
from lit_align.algorithms.grpo import GRPO
from lit_align.batches import Forest
from lit_align.rollouts.generate import encode_prompt
from lit_align.rollouts.sampling import Sampling
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

CLIPPED = {"grpo", "dr_grpo", "dapo", "bnpo", "luspo"}
# Not here: entropy_bonus (the peer's is a token mean whatever the loss's mean; ours goes with the loss), the
# cases of advantages alone, of tool masks and of two micro-batches, which tests/losses compares.
CASES = [
    "grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo", "vespo", "grpo_beta",
    "grpo_beta_no_bias_correction", "dapo_beta_clip_higher", "grpo_delta", "gspo", "gspo_beta",
    "luspo_sequence", "sapo_temperatures", "bnpo_b_scale_batch", "dr_grpo_scale_none",
    "dapo_mask_truncated", "grpo_mask_truncated", "top_entropy", "top_entropy_beta", "off_policy_mask",
]  # fmt: skip


def module_of(hparams, golden_models):
    name = hparams["loss_type"]
    options = {"importance": hparams.get("importance_sampling_level", "token"), "loss_options": {}}
    if name == "cispo":
        options["loss_options"]["ratio_cap"] = hparams["epsilon_high"]
    elif name == "sapo" and "sapo_temperature_pos" in hparams:
        options["loss_options"]["temperature_positive"] = hparams["sapo_temperature_pos"]
        options["loss_options"]["temperature_negative"] = hparams["sapo_temperature_neg"]
    elif name in CLIPPED:
        # Where the peer gives no upper bound it is the lower one, whatever the paper says.
        options["clip_range"] = hparams["epsilon"]
        options["clip_range_high"] = hparams.get("epsilon_high", hparams["epsilon"])
        options["delta"] = hparams.get("delta")
    scales = {"group": "group_normalised", "batch": "batch_normalised", "none": "group_mean"}
    module = GRPO(
        golden_policy(golden_models),
        reference=FromPath(str(golden_models / "reference")),
        rewards=no_reward,
        sampling=Sampling(max_new_tokens=hparams["max_completion_length"]),
        completions=hparams["num_generations"],
        loss=name,
        advantages=scales[hparams.get("scale_rewards", "group")],
        beta=hparams["beta"],
        kl_correction=hparams.get("use_bias_correction_kl", True),
        mask_truncated=hparams.get("mask_truncated_completions", False),
        top_entropy=hparams.get("top_entropy_quantile", 1.0),
        off_policy_threshold=hparams.get("off_policy_mask_threshold"),
        **options,
    )
    module.configure_model()
    return module


@pytest.mark.parametrize("name", CASES)
def test_losses_and_gradients_are_the_reference_numbers(golden, golden_models, name):
    from lit_align.algorithms.collection import judge

    content = golden("grpo")
    case = content["by_id"][name]
    rows = content["batches"][case["batch"]]["rows"]
    module = module_of(case["hparams"], golden_models)
    weights = case["hparams"].get("reward_weights")
    table = rewarded([row["rewards"] for row in rows], weights)
    experience, _ = judge(module, golden_rollout(rows), table)
    loss, grads, metrics = loss_and_gradients(module, experience)
    formula = case["formula_f64"]
    torch.testing.assert_close(loss, formula["loss"], **LOSS)
    torch.testing.assert_close(norm(grads), formula["grad_norm"], **GRADIENT)
    for key, values in formula["grads"].items():
        found = grads[f"policy.model.{key}"].flatten()[: len(values)]
        torch.testing.assert_close(found, torch.tensor(values), **GRADIENT)
    if "kl" in formula["metrics"]:
        kl = metrics["kl"]
        torch.testing.assert_close((kl.value / kl.weight).item(), formula["metrics"]["kl"], **LOSS)


def polite(completions, **rest):
    return [float("please" in text.lower()) for text in completions]


def test_the_first_ratio_is_exactly_one(tmp_path):
    module = GRPO(
        "lit-align/tiny", rewards=polite, sampling=Sampling(12), completions=4, lr=1e-3, num_epochs=2
    )
    _, steps = fit(module, tmp_path, steps=4)
    assert [step["val/ratio"] == 1.0 for step in steps] == [True, False, True, False]
    # And the sampler's own log-probs are the trainer's, up to arithmetic.
    assert steps[0]["ratio/first_mean"] == pytest.approx(1.0, abs=1e-5)
    assert steps[0]["sampling/sampling_logp_difference/max"] < 1e-4


def test_a_group_without_spread_moves_nothing(tmp_path):
    def same(completions, **rest):
        return [1.0] * len(completions)

    module = GRPO("lit-align/tiny", rewards=same, sampling=Sampling(8), completions=4, lr=1e-2)
    module.configure_model()
    before = digest(module)
    _, steps = fit(module, tmp_path, steps=2)
    assert steps[-1]["frac_reward_zero_std"] == 1.0
    assert all(torch.equal(before[n], p) for n, p in digest(module).items())


def test_the_entropy_bonus_is_steered_to_its_target(tmp_path):
    module = GRPO(
        "lit-align/tiny", rewards=polite, sampling=Sampling(8), completions=2, entropy_target=100.0, lr=1e-4
    )
    _, steps = fit(module, tmp_path, steps=3)
    # The entropy can never be 100 nats, so the coefficient rises by its step after each update.
    assert [step["entropy_coef"] for step in steps] == pytest.approx([0.0, 0.005, 0.010])
    assert module.entropy_bonus == pytest.approx(0.015)


def test_the_entropy_bonus_raises_the_entropy(tmp_path):
    def same(completions, **rest):
        return [1.0] * len(completions)

    # Without a difference between rewards nothing moves the policy but the bonus.
    module = GRPO(
        "lit-align/tiny", rewards=same, sampling=Sampling(8), completions=2, lr=1e-3, entropy_coefficient=1.0
    )
    module.configure_model()
    prompt = [{"role": "user", "content": "My lamp will not turn on."}]
    answers = module.respond([prompt], completions=4).ids
    batch = Forest.from_lists([encode_prompt(module.tokenizer, prompt)], [answers])

    def entropy():
        with torch.no_grad():
            return module.policy(batch, statistics=frozenset({"entropy"})).entropy.mean().item()

    before = entropy()
    fit(module, tmp_path, steps=3)
    assert entropy() > before * 1.1


def test_a_function_of_ones_own_is_a_loss_and_an_advantage(tmp_path):
    def plain(ratios, advantages):
        return -ratios * advantages

    def sign(rewards):
        return rewards.sign()

    module = GRPO(
        "lit-align/tiny", rewards=polite, sampling=Sampling(8), completions=2, loss=plain, advantages=sign
    )
    _, steps = fit(module, tmp_path, steps=1)
    assert steps[0]["loss/policy_avg"] <= 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"completions": 1}, "at least 2"),
        ({"top_entropy": 0.0}, "top_entropy"),
        ({"entropy_target": 1.0, "entropy_coefficient": 0.1}, "not both"),
        ({"advantages": "gae"}, "critic"),
        ({"loss": "dap"}, "did you mean 'dapo'"),
        ({"loss": "cispo", "clip_range": 0.2}, "does not use clip_range"),
        ({"num_epochs": 0}, "num_epochs is 0"),
        ({"dynamic_sampling": -1}, "dynamic_sampling is -1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        GRPO("lit-align/tiny", rewards=polite, **arguments)


def test_a_minibatch_that_is_passed_over_steers_no_entropy(golden_models, monkeypatch):
    """One of several processes runs it nevertheless, because Lightning lets none leave a step out."""
    module = GRPO(golden_policy(golden_models), rewards=no_reward, completions=2, entropy_target=1.0)
    module.configure_model()
    monkeypatch.setattr(
        AlignModule, "training_step", lambda self, batch, i: self.observe(self._run(batch, False))
    )
    monkeypatch.setattr(GRPO, "trainer", SimpleNamespace(world_size=2))
    batch = Forest.from_lists([[5, 6]], [[[7, 8], [9]]]).with_token_column("advantages", torch.ones(3))
    module.fill(batch.with_token_column("old_logps", torch.full((3,), -1.0)), [0])
    module.buffer.stopped = True
    module.training_step(batch, 0)
    assert not module._entropies
