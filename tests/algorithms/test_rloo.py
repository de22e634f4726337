"""RLOO as a module, against golden numbers."""

import pytest
import torch

from lit_align.algorithms.collection import judge
from lit_align.algorithms.rloo import RLOO
from lit_align.rollouts.sampling import Sampling
from lit_align.scoring.references import FromPath
from tests.algorithms.on_policy_runs import (
    GRADIENT,
    LOSS,
    fit,
    golden_policy,
    golden_rollout,
    loss_and_gradients,
    no_reward,
    norm,
    rewarded,
)


@pytest.mark.parametrize(
    "name", ["rloo", "rloo_beta0_two_generations", "rloo_normalized_clip", "rloo_missing_rewards"]
)
def test_losses_and_gradients_are_the_reference_numbers(golden, golden_models, name):
    content = golden("rloo")
    case = content["by_id"][name]
    rows, hparams = content["batches"][case["batch"]]["rows"], case["hparams"]
    module = RLOO(
        golden_policy(golden_models),
        reference=FromPath(str(golden_models / "reference")),
        rewards=no_reward,
        completions=hparams["num_generations"],
        beta=hparams["beta"],
        clip_range=hparams["epsilon"],
        clip_range_high=hparams.get("epsilon_high"),
        normalise_advantages=hparams["normalize_advantages"],
        reward_clip=hparams.get("reward_clip_range"),
    )
    module.configure_model()
    table = rewarded([row["rewards"] for row in rows])
    experience, metrics = judge(module, golden_rollout(rows), table)
    loss, grads, _ = loss_and_gradients(module, experience)
    formula = case["formula_f64"]
    torch.testing.assert_close(loss, formula["loss"], **LOSS)
    torch.testing.assert_close(norm(grads), formula["grad_norm"], **GRADIENT)
    assert ("objective/kl" in metrics) == (hparams["beta"] > 0)


def polite(completions, **rest):
    return [float("please" in text.lower()) for text in completions]


def test_a_run_reports_its_kl_and_its_clipping(tmp_path):
    module = RLOO("lit-align/tiny", rewards=polite, sampling=Sampling(8), lr=1e-3, num_epochs=2)
    _, steps = fit(module, tmp_path, steps=4)
    assert steps[0]["objective/kl"] == pytest.approx(0.0, abs=1e-3)
    assert steps[2]["objective/kl"] != 0.0
    assert all(0 <= step["clip_ratio/region_mean"] <= 1 for step in steps)
    assert [step["val/ratio"] == 1.0 for step in steps] == [True, False, True, False]


def test_one_completion_has_no_siblings():
    with pytest.raises(ValueError, match="at least 2"):
        RLOO("lit-align/tiny", rewards=polite, completions=1)
