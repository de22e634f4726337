"""PPO with a value head, as a step on given completions: every case of ``ppo_step.json``.

Log-probs and values are given in float64; the full divergence, entropies and gradients come from the tiny
model. Where the peer's convention is not ours it is applied here, in the test, and said so.
"""

import copy

import pytest
import torch

from lit_align.functional import kl as kl_estimators
from lit_align.functional.gae import gae
from lit_align.functional.kl_control import AdaptiveKL
from lit_align.functional.running_moments import RunningMoments, normalise_scores, scale_scores
from lit_align.functional.segments import segment_sum
from lit_align.functional.token_rewards import clip_scores, token_rewards
from lit_align.functional.whitening import mean_and_variance, moments, whiten, whiten_keep_mean
from lit_align.losses.ppo import (
    clipped_high,
    clipped_low,
    clipped_squared_error,
    clipped_surrogate,
    values_clipped,
)

STEPS = [
    "step_k1", "step_k1_right_padding", "step_abs", "step_k2_mse", "step_full_kl",
    "step_whiten_rewards_gamma", "step_whiten_rewards_right_padding", "step_score_scaling",
    "step_score_scaling_no_norm_clip", "step_response_mask", "step_two_epochs_sgd",
]  # fmt: skip
LOSSES = ["loss_clipped", "loss_clipped_tight", "loss_response_mask", "loss_ratio_threshold"]
PLAIN = ["adaptive_kl", "running_moments"]
PENALTIES = {"kl": "k1", "abs": "abs", "mse": "k2"}


def test_no_case_is_left_out(golden):
    assert set(golden("ppo_step")["by_id"]) == set(STEPS + LOSSES + PLAIN)


def float64(values):
    return torch.tensor(values, dtype=torch.float64)


def flat(lists):
    return float64([x for one in lists for x in one])


class Batch:
    """A batch of the reference numbers, flat."""

    def __init__(self, content):
        self.rows = content["rows"]
        given = content["per_token_logps_f64"]
        self.logps, self.reference, self.values = (
            flat([x[key] for x in given]) for key in ("policy", "reference", "values")
        )
        self.count = len(self.rows)
        lengths = torch.tensor([len(row["completion_ids"]) for row in self.rows])
        self.sequence = torch.repeat_interleave(torch.arange(self.count), lengths)
        self.scores = float64([row["score"] for row in self.rows])

    def mask(self, name):
        if "response_mask" not in name:
            return torch.ones_like(self.logps)
        return flat([row["response_mask"] for row in self.rows])


@pytest.fixture(scope="session")
def batches(golden):
    found = {name: Batch(content) for name, content in golden("ppo_step")["batches"].items()}
    return lambda case: found[case["batch"]]


def scored(network, batch):
    """Log-probs, values and entropies of a network with a value head, with their graph."""
    logps, values, entropies = [], [], []
    for row in batch.rows:
        each = torch.log_softmax(network.logits(row), -1)
        logps.append(each[range(len(each)), row["completion_ids"]])
        entropies.append(-(each.exp() * each).sum(-1).detach())
        values.append(network.state_values(row)[:-1])
    return torch.cat(logps), torch.cat(values), torch.cat(entropies)


@pytest.fixture(scope="session")
def model_scores(network):
    """``model_scores(batch)``: the network with the value head, and what it says; once per batch."""
    policy, found = network("policy", value_head=True), {}

    def score(batch):
        if id(batch) not in found:
            found[id(batch)] = scored(policy, batch)
        return policy, found[id(batch)]

    return score


def scaled_scores(scores, hparams):
    """The peer scales by running moments; on a first batch they are the batch's."""
    if hparams["use_score_scaling"]:
        running = RunningMoments()
        running.update(moments(scores, torch.ones_like(scores)))
        scores = (normalise_scores if hparams["use_score_norm"] else scale_scores)(scores, running)
    if hparams["score_clip"] is not None:
        scores = clip_scores(scores, limit=hparams["score_clip"])
    return scores


def estimate(batch, hparams, mask, scores, logps, values, kl):
    """Rewards, advantages, returns: as the peer's ``compute_rewards`` and ``compute_advantages``.

    With a response mask the peer leaves masked tokens in the recursion, with value and reward 0: ours skips
    them unless it is given zeros and told that they count.
    """
    rewards = token_rewards(scores, kl, mask, batch.sequence, kl_coefficient=hparams["init_kl_coef"])
    if hparams["whiten_rewards"]:
        rewards = whiten_keep_mean(rewards, mask, moments(rewards, mask))
    everything = torch.ones_like(mask)
    found = gae(
        rewards * mask,
        values * mask,
        everything,
        batch.sequence,
        gamma=hparams["gamma"],
        gae_lambda=hparams["lam"],
    )
    advantages = whiten(found.advantages, mask, moments(found.advantages, mask))
    return rewards, advantages, found.returns


def divergence(batch, hparams, network, logps):
    if hparams["kl_penalty"] != "full":
        return kl_estimators.KL_ESTIMATORS[PENALTIES[hparams["kl_penalty"]]](logps, batch.reference)
    policy, reference = network("policy"), network("reference")
    with torch.no_grad():
        return torch.cat([kl_estimators.full(policy.logits(r), reference.logits(r)) for r in batch.rows])


def losses(hparams, mask, now, old, advantages, returns):
    """Token means of both losses, and the ratios; the peer drops a batch whose mean ratio is too large."""
    ratios = (now[0] - old[0]).exp()
    policy = clipped_surrogate(ratios, advantages, clip_range=hparams["cliprange"])
    value = clipped_squared_error(now[1], old[1], returns, clip_range=hparams["cliprange_value"])
    policy, value = ((x * mask).sum() / mask.sum() for x in (policy, value))
    if ((ratios * mask).sum() / mask.sum()).item() > hparams["ratio_threshold"]:
        policy, value = policy * 0, value * 0
    return policy, hparams["vf_coef"] * value, ratios


def near(own, mask, expected, tolerance):
    counted = mask != 0
    torch.testing.assert_close(own.detach()[counted], flat(expected)[counted], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", STEPS)
def test_steps(golden, batches, network, model_scores, check_gradients, name):
    case = golden("ppo_step")["by_id"][name]
    batch, hparams, formula = batches(case), case["hparams"], case["formula_f64"]
    precise = 1e-5 if hparams["kl_penalty"] == "full" else 1e-9
    mask = batch.mask(name)
    scores = scaled_scores(batch.scores, hparams)
    assert scores.tolist() == pytest.approx(formula["scores_after_scaling"], rel=1e-9)
    kl = divergence(batch, hparams, network, batch.logps)
    rewards, advantages, returns = estimate(batch, hparams, mask, scores, batch.logps, batch.values, kl)
    if not hparams["whiten_rewards"]:
        # The peer lists the penalty of masked tokens too, and does not use it. Ours is 0.
        near(rewards, mask, formula["rewards"], precise)
    near(advantages, mask, formula["advantages"], precise)
    near(returns, mask, formula["returns"], precise)
    logps, values = (x.clone().requires_grad_() for x in (batch.logps, batch.values))
    policy, value, _ = losses(
        hparams, mask, (logps, values), (batch.logps, batch.values), advantages, returns
    )
    assert policy.item() == pytest.approx(formula["policy_loss"][0], abs=1e-12)
    assert value.item() == pytest.approx(formula["vf_coef_times_value_loss"][0], rel=precise)
    assert (policy + value).item() == pytest.approx(formula["loss"], rel=precise)
    if case["agree"]:
        assert (policy + value).item() == pytest.approx(case["expected"]["loss"], rel=1e-4)
    else:  # the peer's right padding leaks into the advantages, when rewards are whitened
        assert name == "step_whiten_rewards_right_padding"
        assert abs((policy + value).item() - case["expected"]["loss"]) > 1e-3
    check_step_metrics(case, batch, mask, scores, returns, kl, model_scores, precise)
    slopes = torch.autograd.grad(policy + value, (logps, values))
    net, outputs = model_scores(batch)
    check_gradients(net.gradients(list(outputs[:2]), list(slopes)), formula)


def check_step_metrics(case, batch, mask, scores, returns, kl, model_scores, precise):
    """Masked means; KL and penalty are those of completions, summed over tokens that count."""
    metrics, hparams = case["formula_f64"]["metrics"], case["hparams"]

    def mean(values):
        return ((values * mask).sum() / mask.sum()).item()

    # What is reported, and controlled by, is the estimator that the penalty uses.
    summed = segment_sum(kl * mask, batch.sequence, batch.count).mean().item()
    assert summed == pytest.approx(metrics["objective/kl"], rel=precise)
    assert mean(-hparams["init_kl_coef"] * kl) == pytest.approx(
        metrics["ppo/mean_non_score_reward"], rel=precise
    )
    score_mean, score_variance = mean_and_variance(moments(scores, torch.ones_like(scores)))
    assert score_mean.item() == pytest.approx(metrics["ppo/mean_scores"], rel=1e-9, abs=1e-12)
    assert score_variance.sqrt().item() == pytest.approx(metrics["ppo/std_scores"], rel=1e-9)
    assert mean(returns) == pytest.approx(metrics["ppo/returns/mean"], rel=precise)
    assert mean(batch.values) == pytest.approx(metrics["ppo/val/mean"], rel=1e-9)
    surprise = segment_sum(-batch.logps * mask, batch.sequence, batch.count).mean().item()
    assert surprise == pytest.approx(metrics["objective/entropy"], rel=1e-9)
    if "ppo/policy/entropy" in metrics:
        entropies = model_scores(batch)[1][2]
        assert mean(entropies) == pytest.approx(metrics["ppo/policy/entropy"], rel=1e-5)
    control = AdaptiveKL(hparams["init_kl_coef"], hparams["target"], hparams["horizon"])
    control.update(summed, batch.count)
    assert control.value == pytest.approx(case["formula_f64"]["kl_coef_after"], rel=1e-12)


def test_second_epoch(golden, batches, network):
    """After one step of plain descent on the model, the losses on the same experience."""
    case = golden("ppo_step")["by_id"]["step_two_epochs_sgd"]
    batch, hparams, formula = batches(case), case["hparams"], case["formula_f64"]
    net = copy.deepcopy(network("policy", value_head=True))
    mask = torch.ones_like(batch.logps)
    kl = kl_estimators.k1(batch.logps, batch.reference)
    _, advantages, returns = estimate(batch, hparams, mask, batch.scores, batch.logps, batch.values, kl)
    old = (batch.logps, batch.values)
    found = []
    for _ in range(hparams["ppo_epochs"]):
        logps, values, _ = scored(net, batch)
        policy, value, _ = losses(hparams, mask, (logps, values), old, advantages, returns)
        found.append((policy.item(), value.item()))
        slopes = net.gradients([policy + value], [torch.ones(()).double()])
        with torch.no_grad():
            for key, slope in slopes.items():
                net.parameters[key] -= hparams["sgd_lr"] * slope
    # The library keeps float32 inside its norms: the first loss, a sum of cancelling numbers, shows it.
    assert [p for p, _ in found] == pytest.approx(formula["policy_loss"], rel=1e-4, abs=1e-6)
    assert [v for _, v in found] == pytest.approx(formula["vf_coef_times_value_loss"], rel=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_losses(golden, batches, model_scores, check_gradients, name):
    """Old log-probs and values are given numbers, and those of the model are the present ones."""
    case = golden("ppo_step")["by_id"][name]
    batch, hparams, formula = batches(case), case["hparams"], case["formula_f64"]
    mask = batch.mask(name)
    old = (
        flat([r["old_logprobs"] for r in batch.rows]) + hparams.get("old_logprobs_shift", 0.0),
        flat([r["old_values"] for r in batch.rows]) * mask,
    )
    kl = kl_estimators.k1(old[0], batch.reference)
    rewards, advantages, returns = estimate(batch, hparams, mask, batch.scores, *old, kl)
    near(rewards, mask, formula["rewards"], 1e-9)
    near(old[1], mask, formula["values"], 1e-9)
    near(advantages, mask, formula["advantages"], 1e-9)
    near(returns, mask, formula["returns"], 1e-9)
    logps, values = (x.clone().requires_grad_() for x in (batch.logps, batch.values))
    policy, value, ratios = losses(hparams, mask, (logps, values), old, advantages, returns)
    assert policy.item() == pytest.approx(formula["policy_loss"], rel=1e-9)
    assert value.item() == pytest.approx(formula["vf_coef_times_value_loss"], rel=1e-9)
    assert (policy + value).item() == pytest.approx(formula["loss"], rel=1e-9)
    assert (policy + value).item() == pytest.approx(case["expected"]["loss"], rel=1e-4)

    def mean(x):
        return ((x * mask).sum() / mask.sum()).item()

    bounds = {"clip_range": hparams["cliprange"]}
    low, high = (f(ratios, advantages, **bounds).double() for f in (clipped_low, clipped_high))
    moved = values_clipped(values, old[1], returns, clip_range=hparams["cliprange_value"]).double()
    metrics = formula["metrics"]
    assert mean(low + high) == pytest.approx(metrics["policy/clipfrac"], rel=1e-9)
    assert mean(moved) == pytest.approx(metrics["val/clipfrac"], rel=1e-9)
    assert mean(kl_estimators.k2(logps, old[0])) == pytest.approx(metrics["policy/approxkl"], rel=1e-9)
    assert mean(kl_estimators.k1(old[0], logps)) == pytest.approx(metrics["policy/policykl"], rel=1e-9)
    slopes = torch.autograd.grad(policy + value, (logps, values))
    net, outputs = model_scores(batch)
    check_gradients(net.gradients(list(outputs[:2]), list(slopes)), formula)


def test_gaps_are_no_states_of_ours(golden, batches):
    """A fault of the peer: it lets a masked token's value of 0 into the recursion, so that the token before a
    gap bootstraps from nothing. Ours gives the numbers of the completion without its gap.
    """
    case = golden("ppo_step")["by_id"]["loss_response_mask"]
    batch, hparams = batches(case), case["hparams"]
    mask = batch.mask("response_mask")
    kl = kl_estimators.k1(batch.logps, batch.reference)
    rewards = token_rewards(batch.scores, kl, mask, batch.sequence, kl_coefficient=0.2)
    ours = gae(rewards, batch.values, mask, batch.sequence, gae_lambda=hparams["lam"])
    kept = mask != 0
    closed = gae(
        rewards[kept], batch.values[kept], mask[kept], batch.sequence[kept], gae_lambda=hparams["lam"]
    )
    torch.testing.assert_close(ours.advantages[kept], closed.advantages, rtol=1e-12, atol=1e-12)
    assert not ours.advantages[~kept].any()
    peer = gae(
        rewards * mask, batch.values * mask, torch.ones_like(mask), batch.sequence, gae_lambda=hparams["lam"]
    )
    assert (peer.advantages - ours.advantages)[kept].abs().max() > 0.02


def test_adaptive_kl(golden):
    case = golden("ppo_step")["by_id"]["adaptive_kl"]
    hparams = case["hparams"]
    control = AdaptiveKL(hparams["init_kl_coef"], hparams["target"], hparams["horizon"])
    found = []
    for current, samples in case["inputs"]["current_kl_and_n_steps"]:
        control.update(current, samples)
        found.append(control.value)
    assert found == pytest.approx(case["formula_f64"]["values"], rel=1e-12)
    assert found == pytest.approx(case["expected"]["values"], rel=1e-6)


def test_running_moments(golden):
    case = golden("ppo_step")["by_id"]["running_moments"]
    running = RunningMoments()
    steps = zip(
        case["inputs"]["scores"], case["formula_f64"]["steps"], case["expected"]["steps"], strict=True
    )
    for scores, formula, peer in steps:
        sums = moments(float64(scores), torch.ones(len(scores)))
        mean, variance = mean_and_variance(sums)
        running.update(sums)
        found = {
            "batch_mean": mean.item(),
            "batch_std": variance.sqrt().item(),
            "mean": running.mean,
            "std": running.std,
            "count": running.count,
        }
        # The reference's own running std carries the peer's float32 of the first batches.
        assert found == pytest.approx(formula, rel=1e-5)
        assert found == pytest.approx(peer, rel=1e-5)
    every = float64([x for one in case["inputs"]["scores"] for x in one])
    assert running.std == pytest.approx(every.std().item(), rel=1e-12)
    assert running.mean == pytest.approx(every.mean().item(), rel=1e-12)
