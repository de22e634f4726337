"""Group-relative methods on the reference numbers: every case of ``grpo.json`` and ``rloo.json``.

The per-token log-probs are given in float64, and so are losses and advantages; entropies and gradients come
from the tiny model in float64.
"""

import pytest
import torch

from lit_align.functional import kl as kl_estimators
from lit_align.functional.advantages import Experience, advantage_estimator
from lit_align.functional.group_advantages import group_statistics, weighted_rewards
from lit_align.functional.normalisers import token_mean
from lit_align.functional.segments import segment_mean, segment_sum
from lit_align.functional.whitening import mean_and_variance, moments
from lit_align.losses.policy import Decisions, PolicyObjective
from lit_align.losses.policy_masks import entropy_threshold, high_entropy_mask, off_policy_mask
from lit_align.losses.ppo import clipped_high, clipped_low
from lit_align.losses.vespo import vespo_weights

# fmt: off
LOSSES = [
    "grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo", "vespo", "grpo_beta",
    "grpo_beta_no_bias_correction", "dapo_beta_clip_higher", "grpo_delta", "gspo", "gspo_beta",
    "luspo_sequence", "sapo_temperatures", "bnpo_b_scale_batch", "dr_grpo_scale_none", "dapo_mask_truncated",
    "grpo_mask_truncated", "top_entropy", "top_entropy_beta", "entropy_bonus", "off_policy_mask",
    "dapo_tool_mask",
]
MICRO = ["dapo_two_micro_batches", "grpo_two_micro_batches", "bnpo_two_micro_batches"]
ADVANTAGES = [
    "adv_two_rewards_weights", "adv_batch_scale", "adv_none_scale", "adv_normalize_then_sum",
    "adv_missing_rewards", "adv_missing_rewards_normalize_then_sum", "adv_zero_std_group",
]
RLOO = ["rloo", "rloo_beta0_two_generations", "rloo_normalized_clip", "rloo_missing_rewards"]
# fmt: on
FLOAT64 = {"rtol": 1e-9, "atol": 1e-10}
PEER = {"rel": 1e-4, "abs": 1e-5}
EOS_OR_PAD = {0, 2}
CLIPPED = {"grpo", "dr_grpo", "dapo", "bnpo", "luspo"}


@pytest.mark.parametrize(("family", "names"), [("grpo", LOSSES + MICRO + ADVANTAGES), ("rloo", RLOO)])
def test_no_case_is_left_out(golden, family, names):
    assert set(golden(family)["by_id"]) == set(names)


def float64(values):
    return torch.tensor(values, dtype=torch.float64)


def flat(lists):
    return float64([x for one in lists for x in one])


class Batch:
    """A batch of the reference numbers, flat."""

    def __init__(self, content):
        self.rows = content["rows"]
        given = content["per_token_logps_f64"]
        self.logps = flat([x["policy"] for x in given])
        self.reference = flat([x["reference"] for x in given])
        self.old = flat([row["old_per_token_logps"] for row in self.rows])
        self.count = len(self.rows)
        lengths = torch.tensor([len(row["completion_ids"]) for row in self.rows])
        self.sequence = torch.repeat_interleave(torch.arange(self.count), lengths)
        self.group = torch.tensor([row["group"] for row in self.rows])
        self.table = float64(
            [[float("nan") if x is None else x for x in row["rewards"]] for row in self.rows]
        )

    def mask(self, case):
        mask = torch.ones_like(self.logps)
        if "tool_mask" in case:
            mask = flat(case["tool_mask"])
        if case["hparams"].get("mask_truncated_completions"):
            ended = float64([row["completion_ids"][-1] in EOS_OR_PAD for row in self.rows])
            mask = mask * ended[self.sequence]
        return mask

    def experience(self, hparams, rewards=None):
        weights = float64(hparams.get("reward_weights", [1.0] * self.table.shape[1]))
        return Experience(
            rewards=weighted_rewards(self.table, weights) if rewards is None else rewards,
            reward_table=self.table,
            reward_weights=weights,
            group=self.group,
            groups=int(self.group.max()) + 1,
        )


def estimator_of(hparams):
    if hparams.get("multi_objective_aggregation") == "normalize_then_sum":
        return advantage_estimator("gdpo")
    names = {"group": "group_normalised", "batch": "batch_normalised", "none": "group_mean"}
    return advantage_estimator(names[hparams.get("scale_rewards", "group")])


def objective_of(hparams):
    name = hparams["loss_type"]
    options = {"importance": hparams.get("importance_sampling_level", "token")}
    if name == "cispo":
        options["ratio_cap"] = hparams["epsilon_high"]
    elif name == "sapo":
        options["temperature_positive"] = hparams.get("sapo_temperature_pos")
        options["temperature_negative"] = hparams.get("sapo_temperature_neg")
    elif name in CLIPPED:
        # Where the peer gives no upper bound it is the lower one, whatever the paper says.
        options["clip_range"] = hparams["epsilon"]
        options["clip_range_high"] = hparams.get("epsilon_high", hparams["epsilon"])
        options["delta"] = hparams.get("delta")
    if name == "dr_grpo":
        options["length"] = hparams["max_completion_length"]
    return PolicyObjective(name, **options)


@pytest.fixture(scope="session")
def batches(golden):
    """``batches(case)``: the flat batch of a case of either family."""
    found = {}
    for family in ("grpo", "rloo"):
        for name, content in golden(family)["batches"].items():
            found[name] = Batch(content)
    return lambda case: found[case["batch"]]


@pytest.fixture(scope="session")
def model_scores(network):
    """``model_scores(batch)``: log-probs and entropies of the policy, with their graph; once per batch."""
    policy, found = network("policy"), {}

    def score(batch):
        if id(batch) not in found:
            logps, entropies = [], []
            for row in batch.rows:
                each = torch.log_softmax(policy.logits(row), -1)
                logps.append(each[range(len(each)), row["completion_ids"]])
                entropies.append(-(each.exp() * each).sum(-1))
            found[id(batch)] = torch.cat(logps), torch.cat(entropies)
        return found[id(batch)]

    return score


def test_the_model_gives_the_log_probs_that_are_given(golden, batches, model_scores):
    for case in (golden("grpo")["by_id"]["grpo"], golden("grpo")["by_id"]["off_policy_mask"]):
        batch = batches(case)
        torch.testing.assert_close(model_scores(batch)[0].detach(), batch.logps, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [n for n in LOSSES if n not in MICRO] + ADVANTAGES)
def test_advantages(golden, batches, name):
    case = golden("grpo")["by_id"][name]
    batch, hparams = batches(case), case["hparams"]
    experience = batch.experience(hparams)
    advantages = estimator_of(hparams)(experience)
    torch.testing.assert_close(advantages, float64(case["formula_f64"]["advantages"]), **FLOAT64)
    expected = float64(case["expected"]["advantages"])
    torch.testing.assert_close(advantages, expected, rtol=1e-4, atol=1e-5)
    metrics = dict(case["expected"]["metrics"])
    if hparams.get("scale_rewards") == "batch":
        # The peer's: 1 or 0 for the whole batch. Ours counts the groups that teach nothing in every case.
        assert metrics["frac_reward_zero_std"] == 0.0
        metrics["frac_reward_zero_std"] = {"rl_a": 0.0, "rl_b": 1 / 3}[case["batch"]]
    check_reward_metrics(metrics, batch, experience)


def check_reward_metrics(metrics, batch, experience):
    for k, column in enumerate(batch.table.unbind(-1)):
        mean, variance = mean_and_variance(moments(column, ~column.isnan()))
        assert mean.item() == pytest.approx(metrics[f"rewards/r{k}/mean"], **PEER)
        assert variance.sqrt().item() == pytest.approx(metrics[f"rewards/r{k}/std"], **PEER)
    mean, variance = mean_and_variance(moments(experience.rewards, ~experience.rewards.isnan()))
    _, deviations = group_statistics(experience.rewards, experience.group, experience.groups)
    assert mean.item() == pytest.approx(metrics["reward"], **PEER)
    assert variance.sqrt().item() == pytest.approx(metrics["reward_std"], **PEER)
    assert (deviations == 0).double().mean().item() == pytest.approx(metrics["frac_reward_zero_std"], **PEER)


def token_losses(case, batch, logps, entropies, mask):
    """The per-token losses of a case, and what they are made of."""
    hparams = case["hparams"]
    objective = objective_of(hparams)
    advantages = estimator_of(hparams)(batch.experience(hparams))[batch.sequence]
    tokens = Decisions(
        logps, batch.old, advantages, mask, batch.sequence, batch.count, objective.loss.importance
    )
    losses = objective(tokens)
    if "off_policy_mask_threshold" in hparams:
        given = (logps, batch.old, advantages, mask, batch.sequence, batch.count)
        losses = losses * off_policy_mask(*given, threshold=hparams["off_policy_mask_threshold"])
    if "top_entropy_quantile" in hparams:
        threshold = entropy_threshold(entropies, mask, top=hparams["top_entropy_quantile"])
        losses = losses * high_entropy_mask(entropies, mask, threshold)
    kl = kl_estimators.k3(logps, batch.reference)
    used = kl_estimators.importance_corrected(kl, tokens.ratios) if corrected(hparams) else kl
    return losses + hparams["beta"] * used, used, tokens, objective


def corrected(hparams):
    return hparams.get("use_bias_correction_kl", True)


@pytest.mark.parametrize("name", LOSSES)
def test_losses(golden, batches, network, model_scores, check_gradients, name):
    case = golden("grpo")["by_id"][name]
    batch, hparams, formula = batches(case), case["hparams"], case["formula_f64"]
    mask = batch.mask(case)
    scored = model_scores(batch)
    logps = batch.logps.clone().requires_grad_()
    entropies = scored[1].detach().requires_grad_()
    losses, kl, tokens, objective = token_losses(case, batch, logps, entropies, mask)
    weights, total = objective.token_weights(tokens)
    # The peer's bonus is the token mean of the entropy, whatever the mean of the policy term.
    bonus = (entropies * mask).sum() / mask.sum()
    loss = (losses * weights).sum() / total - hparams.get("entropy_coef", 0.0) * bonus
    precise = 1e-5 if "entropy_coef" in hparams else 1e-9
    assert loss.item() == pytest.approx(formula["loss"], rel=precise, abs=1e-10)
    assert loss.item() == pytest.approx(case["expected"]["loss"], **PEER)
    check_per_token(case, tokens, losses)
    check_metrics(case, batch, tokens, mask, kl, bonus)
    slopes = torch.autograd.grad(loss, (logps, entropies), allow_unused=True, materialize_grads=True)
    check_gradients(network("policy").gradients(list(scored), list(slopes)), formula)


def check_per_token(case, tokens, losses):
    """Ratios and token losses, where a token counts."""
    counted = tokens.mask != 0
    ratios = [x if isinstance(x, list) else [x] for x in case["ratio_f64"]]
    if len(flat(ratios)) == len(losses):
        torch.testing.assert_close(tokens.ratios.detach()[counted], flat(ratios)[counted], **FLOAT64)
    else:  # one ratio per completion
        each = segment_mean(tokens.ratios.detach(), tokens.mask, tokens.sequence, tokens.completions)
        torch.testing.assert_close(each, flat(ratios), **FLOAT64)
    expected = flat(case["per_token_loss_f64"])
    torch.testing.assert_close(losses.detach()[counted], expected[counted], **FLOAT64)
    if "phi_f64" in case:
        sums = segment_sum((tokens.logps - tokens.old_logps).detach(), tokens.sequence, tokens.completions)
        first = [tokens.advantages[tokens.sequence == c][0] for c in range(tokens.completions)]
        phi = [
            vespo_weights(s, k=2.0, lambda_=3.0) if a >= 0 else vespo_weights(s, k=3.0, lambda_=2.0)
            for s, a in zip(sums, first, strict=True)
        ]
        expected = float64([x[0] if isinstance(x, list) else x for x in case["phi_f64"]])
        torch.testing.assert_close(torch.stack(phi), expected, **FLOAT64)


def check_metrics(case, batch, tokens, mask, kl, entropy):
    """Means over the tokens that count, or over completions where they share a ratio; extremes over those."""
    metrics = case["expected"]["metrics"]
    assert entropy.item() == pytest.approx(case["formula_f64"]["metrics"]["entropy"], rel=1e-5)
    if "kl" in metrics:
        mean = ((kl * mask).sum() / mask.sum()).item()
        assert mean == pytest.approx(case["formula_f64"]["metrics"]["kl"], rel=1e-9)
    if case["hparams"]["loss_type"] in CLIPPED:
        epsilon = case["hparams"]["epsilon"]
        bounds = {"clip_range": epsilon, "clip_range_high": case["hparams"].get("epsilon_high", epsilon)}
        low = clipped_low(tokens.ratios, tokens.advantages, **bounds).double()
        high = clipped_high(tokens.ratios, tokens.advantages, **bounds).double()
        per_row = {
            key: segment_mean(where, mask, batch.sequence, batch.count)
            for key, where in (("low", low), ("high", high), ("region", low + high))
        }
        weights = torch.ones(batch.count).double()
        if tokens.importance == "token":
            weights = segment_sum(mask, batch.sequence, batch.count)
        for key, value in per_row.items():
            mean = ((value * weights).sum() / weights.sum()).item()
            assert mean == pytest.approx(metrics[f"clip_ratio/{key}_mean"], **PEER)
        assert per_row["low"].min().item() == pytest.approx(metrics["clip_ratio/low_min"], **PEER)
        assert per_row["high"].max().item() == pytest.approx(metrics["clip_ratio/high_max"], **PEER)


def slice_of(batch, rows):
    wanted = torch.isin(batch.sequence, torch.tensor(rows))
    return wanted, batch.sequence[wanted] - rows[0]


@pytest.mark.parametrize("name", MICRO)
def test_micro_batches(golden, batches, network, model_scores, check_gradients, name):
    """The peer divides each micro-batch on its own; ours divides the window by its weight. They agree for
    ``dapo``, and for ``grpo`` where micro-batches have as many rows; for ``bnpo`` ours gives dapo's number.
    """
    case = golden("grpo")["by_id"][name]
    batch, hparams, formula = batches(case), case["hparams"], case["formula_f64"]
    steps, size = hparams["gradient_accumulation_steps"], hparams["per_device_train_batch_size"]
    logps = batch.logps.clone().requires_grad_()
    mask = torch.ones_like(logps)
    losses, _, tokens, objective = token_losses(case, batch, logps, None, mask)
    window, total = objective.token_weights(tokens)
    parts, ours, weight = [], [], []
    for start in range(0, batch.count, size):
        where, sequence = slice_of(batch, list(range(start, start + size)))
        own = Decisions(logps[where], batch.old[where], tokens.advantages[where], mask[where], sequence, size)
        weights, part = objective.token_weights(own)
        summed = (losses[where] * weights).sum()
        ours.append(summed)
        weight.append(part)
        # Dapo: by the tokens of the whole generation batch. The others: by their own, then by the steps.
        parts.append(summed / total if hparams["loss_type"] == "dapo" else summed / part / steps)
    assert [x.item() for x in parts] == pytest.approx(formula["micro_losses"], rel=1e-9)
    assert [x.item() for x in parts] == pytest.approx(case["expected"]["micro_losses"], **PEER)
    loss = sum(parts)
    assert loss.item() == pytest.approx(formula["loss"], rel=1e-9)
    (slope,) = torch.autograd.grad(loss, logps, retain_graph=True)
    check_gradients(network("policy").gradients([model_scores(batch)[0]], [slope]), formula)
    # Whatever the cut, sums over sums are the loss of the window.
    torch.testing.assert_close(sum(ours) / sum(weight), (losses * window).sum() / total, **FLOAT64)
    if hparams["loss_type"] == "bnpo":
        dapo = golden("grpo")["by_id"]["dapo_two_micro_batches"]["formula_f64"]["loss"]
        assert (sum(ours) / sum(weight)).item() == pytest.approx(dapo, rel=1e-9)
        assert abs(loss.item() - dapo) > 1e-3
    else:
        assert (sum(ours) / sum(weight)).item() == pytest.approx(formula["loss"], rel=1e-9)


def rloo_rewards(batch, hparams):
    """Summed, clipped, then charged for the divergence of the old policy from the reference."""
    rewards = batch.experience(hparams).rewards
    if "reward_clip_range" in hparams:
        rewards = rewards.clamp(*hparams["reward_clip_range"])
    each = kl_estimators.k1(batch.old, batch.reference)
    return rewards - hparams["beta"] * segment_sum(each, batch.sequence, batch.count), each


@pytest.mark.parametrize("name", RLOO)
def test_rloo(golden, batches, network, model_scores, check_gradients, name):
    case = golden("rloo")["by_id"][name]
    batch, hparams, formula = batches(case), case["hparams"], case["formula_f64"]
    rewards, divergence = rloo_rewards(batch, hparams)
    kind = "leave_one_out_normalised" if hparams["normalize_advantages"] else "leave_one_out"
    advantages = advantage_estimator(kind)(batch.experience(hparams, rewards))
    torch.testing.assert_close(advantages, float64(formula["advantages"]), **FLOAT64)
    bounds = {"clip_range": hparams["epsilon"], "clip_range_high": hparams.get("epsilon_high")}
    objective = PolicyObjective("rloo", **bounds)
    logps = batch.logps.clone().requires_grad_()
    mask = torch.ones_like(logps)
    tokens = Decisions(
        logps, batch.old, advantages[batch.sequence], mask, batch.sequence, batch.count, "sequence_sum"
    )
    losses = objective(tokens)
    weights, total = objective.token_weights(tokens)
    each = segment_sum(losses * weights, batch.sequence, batch.count)
    loss = each.sum() / total
    ratios = segment_mean(tokens.ratios, mask, batch.sequence, batch.count).detach()
    torch.testing.assert_close(ratios, float64(case["ratio_f64"]), **FLOAT64)
    torch.testing.assert_close(each.detach(), float64(case["per_row_f64"]), **FLOAT64)
    assert loss.item() == pytest.approx(formula["loss"], rel=1e-9)
    assert loss.item() == pytest.approx(case["expected"]["loss"], **PEER)
    metrics = case["expected"]["metrics"]
    check_reward_metrics(metrics, batch, batch.experience(hparams))
    low, high = (f(ratios, advantages, **bounds).double() for f in (clipped_low, clipped_high))
    assert low.mean().item() == pytest.approx(metrics["clip_ratio/low_mean"])
    assert high.mean().item() == pytest.approx(metrics["clip_ratio/high_mean"])
    assert (low + high).mean().item() == pytest.approx(metrics["clip_ratio/region_mean"])
    assert high.max().item() == metrics["clip_ratio/high_max"]
    weights, total = token_mean(mask, batch.sequence, batch.count)
    entropy = (model_scores(batch)[1].detach() * weights).sum() / total
    assert entropy.item() == pytest.approx(formula["metrics"]["entropy"], rel=1e-5)
    if "kl" in metrics:
        assert divergence.mean().item() == pytest.approx(formula["metrics"]["kl"], rel=1e-9)
    (slope,) = torch.autograd.grad(loss, logps)
    check_gradients(network("policy").gradients([model_scores(batch)[0]], [slope]), formula)
