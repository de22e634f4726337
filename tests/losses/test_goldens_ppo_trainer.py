"""PPO with a critic and a reward network of their own: every case of ``ppo_trainer.json``.

The tiny models give log-probs, scores and values in float64. The peer puts the score one position past the
last token where the batch is wide enough; that position is one more state, with a value and a reward, and no
token. In a flat batch it is just one more entry of its sequence, which is how the tests write it.
"""

import pytest
import torch

from lit_align.functional import kl as kl_estimators
from lit_align.functional.gae import gae
from lit_align.functional.segments import segment_sum
from lit_align.functional.token_rewards import last_tokens, penalise_missing_eos, token_rewards
from lit_align.functional.whitening import moments, whiten, whiten_keep_mean
from lit_align.losses.ppo import (
    clipped_high,
    clipped_low,
    clipped_squared_error,
    clipped_surrogate,
    values_clipped,
)

CASES = ["k1", "k3", "missing_eos_penalty_gamma", "temperature", "tight_clips", "whiten_rewards"]
EOS = 2
# The library's Llama keeps float32 inside its norms and rotary tables.
MODEL = {"rtol": 2e-5, "atol": 2e-6}


def test_no_case_is_left_out(golden):
    assert set(golden("ppo_trainer")["by_id"]) == set(CASES)


def float64(values):
    return torch.tensor(values, dtype=torch.float64)


def flat(lists):
    return float64([x for one in lists for x in one])


class Peer:
    """A batch in the peer's convention: ``states`` are tokens and, where there is room, one position more."""

    def __init__(self, content):
        self.rows = content["rows"]
        lengths = [len(row["completion_ids"]) for row in self.rows]
        self.states = [len(row["old_values"]) for row in self.rows]
        assert all(s == n + (n < max(lengths)) for s, n in zip(self.states, lengths, strict=True))
        self.count = len(self.rows)
        self.sequence = torch.repeat_interleave(torch.arange(self.count), torch.tensor(self.states))
        self.is_token = torch.cat([torch.arange(s) < n for s, n in zip(self.states, lengths, strict=True)])
        self.tokens = self.sequence[self.is_token]
        self.old_logps = flat([row["old_logprobs"] for row in self.rows])
        self.old_values = flat([row["old_values"] for row in self.rows])
        self.finished = torch.tensor([EOS in row["completion_ids"] for row in self.rows])

    def spread(self, values):
        """``[N]`` of tokens to states: 0 at the positions past the end."""
        return torch.zeros(len(self.sequence)).double().masked_scatter(self.is_token, values)


@pytest.fixture(scope="session")
def peer(golden):
    found = {name: Peer(content) for name, content in golden("ppo_trainer")["batches"].items()}
    return lambda case: found[case["batch"]]


def logps_of(network, batch, temperature):
    """Log-probs and entropies of the completion tokens; the peer adds 1e-7 to the temperature."""
    logps, entropies = [], []
    for row in batch.rows:
        each = torch.log_softmax(network.logits(row) / (temperature + 1e-7), -1)
        logps.append(each[range(len(each)), row["completion_ids"]])
        entropies.append(-(each.exp() * each).sum(-1))
    return torch.cat(logps), torch.cat(entropies)


@pytest.fixture(scope="session")
def networks(network):
    """``networks(batch, temperature)``: log-probs of both, scores and values, with graphs; once per pair."""
    found = {}

    def run(batch, temperature):
        key = id(batch), temperature
        if key not in found:
            with torch.no_grad():
                reference, _ = logps_of(network("reference"), batch, temperature)
                scores = torch.stack([network("reward").state_values(row)[-1] for row in batch.rows])
            values = [
                network("critic").state_values(row)[:states]
                for row, states in zip(batch.rows, batch.states, strict=True)
            ]
            policy = logps_of(network("policy"), batch, temperature)
            found[key] = {
                "logps": policy[0], "entropies": policy[1].detach(), "reference": reference,
                "scores": scores, "values": torch.cat(values),
            }  # fmt: skip
        return found[key]

    return run


def rewards_of(batch, hparams, scores, reference):
    """KL at the tokens, score at the last state of the sequence; whitened over the states if wanted."""
    kl = kl_estimators.KL_ESTIMATORS[hparams["kl_estimator"]](batch.old_logps, reference)
    everything = torch.ones(len(batch.sequence)).double()
    rewards = token_rewards(
        scores, batch.spread(kl), everything, batch.sequence, kl_coefficient=hparams["kl_coef"]
    )
    if hparams["whiten_rewards"]:
        rewards = whiten_keep_mean(rewards, everything, moments(rewards, everything))
    return rewards, kl


@pytest.mark.parametrize("name", CASES)
def test_case(golden, peer, network, networks, check_gradients, name):
    case = golden("ppo_trainer")["by_id"][name]
    batch, hparams, formula = peer(case), case["hparams"], case["formula_f64"]
    found = networks(batch, hparams["temperature"])
    torch.testing.assert_close(found["scores"], float64(formula["scores"]), **MODEL)
    scores = found["scores"]
    if hparams["missing_eos_penalty"] is not None:
        scores = penalise_missing_eos(scores, batch.finished, penalty=hparams["missing_eos_penalty"])
    rewards, kl = rewards_of(batch, hparams, scores, found["reference"])
    torch.testing.assert_close(rewards, flat(case["rewards_f64"]), **MODEL)
    everything = torch.ones_like(rewards)
    estimate = gae(
        rewards,
        batch.old_values,
        everything,
        batch.sequence,
        gamma=hparams["gamma"],
        gae_lambda=hparams["lam"],
    )
    torch.testing.assert_close(estimate.advantages, flat(formula["unwhitened_advantages"]), **MODEL)
    torch.testing.assert_close(estimate.returns, flat(case["returns_f64"]), **MODEL)
    raw = estimate.advantages[batch.is_token]
    mask = torch.ones_like(raw)
    advantages = whiten(raw, mask, moments(raw, mask))
    torch.testing.assert_close(advantages, flat(formula["advantages"]), **MODEL)

    logps, values = (found[key].detach().requires_grad_() for key in ("logps", "values"))
    ratios = (logps - batch.old_logps).exp()
    policy = clipped_surrogate(ratios, advantages, clip_range=hparams["cliprange"]).mean()
    clip = {"clip_range": hparams["cliprange_value"]}
    value = clipped_squared_error(values, batch.old_values, estimate.returns, **clip).mean()
    loss = policy + hparams["vf_coef"] * value
    for key, own in (("policy_loss", policy), ("value_loss", value), ("loss", loss)):
        assert own.item() == pytest.approx(formula[key], rel=2e-5, abs=2e-6), key
        assert own.item() == pytest.approx(case["expected"][key], rel=1e-4, abs=1e-5), key
    policy_slope, value_slope = torch.autograd.grad(loss, (logps, values))
    check_gradients(network("policy").gradients([found["logps"]], [policy_slope]), formula, "policy_")
    check_gradients(network("critic").gradients([found["values"]], [value_slope]), formula, "critic_")

    moved = values_clipped(values, batch.old_values, estimate.returns, **clip).double()
    bounds = {"clip_range": hparams["cliprange"]}
    clipped = [f(ratios, advantages, **bounds).double().mean().item() for f in (clipped_low, clipped_high)]
    metrics = formula["metrics"]
    assert sum(clipped) == pytest.approx(metrics["policy/clipfrac_avg"], rel=1e-9)
    assert moved.mean().item() == pytest.approx(metrics["val/clipfrac_avg"], rel=1e-9)
    check_objective_metrics(metrics, batch, hparams, scores, kl)
    check_metrics_that_count_padding(case, batch, logps.detach(), ratios.detach())


def check_objective_metrics(metrics, batch, hparams, scores, kl):
    divergence = segment_sum(kl, batch.tokens, batch.count)
    penalty = -hparams["kl_coef"] * divergence
    assert divergence.mean().item() == pytest.approx(metrics["objective/kl"], rel=2e-5)
    assert penalty.mean().item() == pytest.approx(metrics["objective/non_score_reward"], rel=2e-5)
    assert scores.mean().item() == pytest.approx(metrics["objective/scores"], rel=2e-5)
    assert (penalty + scores).mean().item() == pytest.approx(metrics["objective/rlhf_reward"], rel=2e-5)
    ends = [row["completion_ids"].count(EOS) for row in batch.rows]
    assert sum(ends) == metrics["val/num_eos_tokens"]


def check_metrics_that_count_padding(case, batch, logps, ratios):
    """A fault of the peer: these three take in the pads of the right-padded batch, whose log-probs it sets to
    1, old and new. Ours are the masked ones; the peer's numbers follow with as many pads.
    """
    metrics, width = case["formula_f64"]["metrics"], max(len(r["completion_ids"]) for r in batch.rows)
    cells, pads = batch.count * width, batch.count * width - len(logps)
    approximate = kl_estimators.k2(logps, batch.old_logps)
    surprise = -segment_sum(batch.old_logps, batch.tokens, batch.count).mean()
    ours = {
        "policy/approxkl": approximate.mean().item(),
        "val/ratio": ratios.mean().item(),
        "objective/entropy": surprise.item(),
    }
    if "masked_metrics_f64" in case:
        assert ours == pytest.approx(case["masked_metrics_f64"], rel=2e-5)
    theirs = {
        "policy/approxkl_avg": approximate.sum().item() / cells,
        "val/ratio": (ratios.sum().item() + pads) / cells,
        "objective/entropy": surprise.item() - pads / batch.count,
    }
    assert theirs == pytest.approx({key: metrics[key] for key in theirs}, rel=2e-5)


def test_our_returns_do_not_depend_on_the_other_rows(golden, peer, networks):
    """A fault of the peer: with its score past the end, a row's returns change with the width of the batch.
    Ours puts the score at the last token, for every row alike.
    """
    case = golden("ppo_trainer")["by_id"]["k1"]
    batch, hparams = peer(case), case["hparams"]
    found = networks(batch, 1.0)
    kl = kl_estimators.k1(batch.old_logps, found["reference"])
    mask, values = torch.ones_like(kl), batch.old_values[batch.is_token]
    rewards = token_rewards(found["scores"], kl, mask, batch.tokens, kl_coefficient=hparams["kl_coef"])
    together = gae(rewards, values, mask, batch.tokens).returns
    for row in range(batch.count):
        own = batch.tokens == row
        alone = token_rewards(
            found["scores"][row : row + 1], kl[own], mask[own], batch.tokens[own] * 0, kl_coefficient=0.05
        )
        returns = gae(alone, values[own], mask[own], batch.tokens[own] * 0).returns
        torch.testing.assert_close(together[own], returns, rtol=1e-12, atol=1e-12)
    ends = last_tokens(mask, batch.tokens, batch.count)
    torch.testing.assert_close(together[ends], (found["scores"] - hparams["kl_coef"] * kl[ends]))
