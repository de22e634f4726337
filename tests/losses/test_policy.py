"""Policy losses by name."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_align.losses import policy as module
from lit_align.losses.policy import (
    POLICY_LOSSES,
    Decisions,
    PolicyLoss,
    PolicyObjective,
    policy_loss,
    register,
)

OPTIONS = {name: {"length": 4} if name == "dr_grpo" else {} for name in POLICY_LOSSES}
# Those whose value at ratio 1 is -A; the others weigh log-probs, or have a factor.
SURROGATES = ["ppo", "reinforce_pp", "rloo", "grpo", "dr_grpo", "dapo", "bnpo", "gspo", "luspo"]


def float64(values):
    return torch.tensor(values, dtype=torch.float64)


def decisions(logps, old, advantages, lengths, mask=None):
    sequence = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    mask = torch.ones(len(sequence)).double() if mask is None else mask
    return Decisions(logps, old, advantages, mask, sequence, len(lengths))


def value(objective, tokens):
    weights, total = objective.token_weights(tokens)
    return (objective(tokens) * weights).sum() / total


@pytest.mark.parametrize("name", SURROGATES)
def test_at_ratio_one_the_loss_is_minus_the_advantage(name):
    logps, advantages = float64([-1.0, -2.0, -3.0]), float64([2.0, 2.0, -1.0])
    objective = PolicyObjective(name, **OPTIONS[name])
    torch.testing.assert_close(objective(decisions(logps, logps, advantages, [2, 1])), -advantages)


@pytest.mark.parametrize("name", POLICY_LOSSES)
def test_at_ratio_one_all_have_the_policy_gradient(name):
    """-A times the weight of the token, shared evenly in a completion where the ratio is."""
    logps = float64([-1.0, -2.0, -3.0]).requires_grad_()
    advantages = float64([2.0, 2.0, -1.0])
    objective = PolicyObjective(name, **OPTIONS[name])
    tokens = decisions(logps, logps.detach(), advantages, [2, 1])
    (gradient,) = torch.autograd.grad(objective(tokens).sum(), logps)
    factor = float64([2.0, 2.0, 1.0]) if name == "rloo" else 1.0  # a whole completion's, on each token
    torch.testing.assert_close(gradient, -advantages * factor)


def test_rloo_counts_a_completion_once():
    """The sum of log-ratios on every token, averaged over them: the gradient of a token is -A / C."""
    logps = float64([-1.0, -2.0, -3.0]).requires_grad_()
    objective = PolicyObjective("rloo")
    tokens = decisions(logps, logps.detach(), float64([2.0, 2.0, -1.0]), [2, 1])
    (gradient,) = torch.autograd.grad(value(objective, tokens), logps)
    torch.testing.assert_close(gradient, float64([-1.0, -1.0, 0.5]))


def test_gspo_is_a_mean_over_completions():
    """Mean log-ratios log 1.5 (clipped to 1.1) and log ½ (bad: clipped to 0.9): (-1.1 + 0.9)/2."""
    old = float64([-1.0, -1.0, -1.0])
    shift = float64([2.25, 1.0, 0.5]).log()
    tokens = decisions(old + shift, old, float64([1.0, 1.0, -1.0]), [2, 1])
    objective = PolicyObjective("gspo", clip_range=0.1, clip_range_high=0.1)
    assert value(objective, tokens).item() == pytest.approx(-0.1)


def test_luspo_is_gspo_times_the_length():
    old = float64([-1.0, -1.0, -1.0])
    tokens = decisions(old, old, float64([1.0, 1.0, -1.0]), [2, 1])
    assert value(PolicyObjective("luspo"), tokens).item() == pytest.approx((-2 + 1) / 2)
    assert value(PolicyObjective("gspo"), tokens).item() == pytest.approx(0.0)


rows = st.lists(
    st.lists(st.tuples(st.floats(-1, 1), st.booleans()), min_size=1, max_size=4), min_size=1, max_size=4
)


@pytest.mark.parametrize("name", POLICY_LOSSES)
@settings(max_examples=30)
@given(rows)
def test_ragged_equals_one_completion_at_a_time(name, lists):
    """And what is masked is not seen by the tokens that count."""
    shift = float64([s for one in lists for s, _ in one])
    mask = float64([float(m) for one in lists for _, m in one])
    lengths = [len(one) for one in lists]
    objective = PolicyObjective(name, **OPTIONS[name])
    old = torch.full_like(shift, -2.0)
    advantages = float64([(-1.0) ** i * (i + 1) for i, one in enumerate(lists) for _ in one])
    tokens = decisions(old + shift, old, advantages, lengths, mask)
    together, weights = objective(tokens), objective.token_weights(tokens)
    garbage = torch.where(mask != 0, old + shift, -77.0)
    unseen = objective(decisions(garbage, old, advantages, lengths, mask))
    torch.testing.assert_close(unseen[mask != 0], together[mask != 0], rtol=1e-12, atol=1e-12)
    total = 0.0
    for c, length in enumerate(lengths):
        own = tokens.sequence == c
        alone = decisions((old + shift)[own], old[own], advantages[own], [length], mask[own])
        torch.testing.assert_close(objective(alone), together[own], rtol=1e-12, atol=1e-12)
        part = objective.token_weights(alone)
        torch.testing.assert_close(part.weights, weights.weights[own], rtol=1e-12, atol=1e-12)
        total = total + part.total
    assert total == weights.total


@pytest.mark.parametrize("name", POLICY_LOSSES)
def test_gradcheck(name):
    """Against differences, but for what is held constant: those losses are linear in the log-prob."""
    old = float64([-1.0, -2.0, -3.0, -1.5])
    logps = (old + float64([0.4, -0.3, 0.05, -0.9])).requires_grad_()
    advantages = float64([1.0, 1.0, -2.0, -2.0])
    if name in ("cispo", "vespo"):
        tokens = decisions(logps, old, advantages, [2, 2])
        losses = PolicyObjective(name)(tokens)
        (gradient,) = torch.autograd.grad(losses.sum(), logps)
        torch.testing.assert_close(gradient, (losses / logps).detach())
        return
    objective = PolicyObjective(name, **OPTIONS[name])
    assert torch.autograd.gradcheck(lambda x: objective(decisions(x, old, advantages, [2, 2])), logps)


def test_level_and_mean_can_be_chosen():
    old = float64([-1.0, -1.0, -1.0])
    tokens = decisions(old + float64([0.1, -0.1, 0.0]), old, float64([1.0, 1.0, 4.0]), [2, 1])
    objective = PolicyObjective("ppo", importance="sequence", normaliser="sequence_mean")
    assert value(objective, tokens).item() == pytest.approx((-1 - 4) / 2)
    assert value(PolicyObjective("ppo"), tokens).item() == pytest.approx(-(1.1051709 + 0.9048374 + 4) / 3)


def test_papers_bounds_are_defaults_and_not_more():
    assert PolicyObjective("gspo").hyperparameters == {"clip_range": 3e-4, "clip_range_high": 4e-4}
    assert PolicyObjective("dapo", clip_range_high=0.5).hyperparameters["clip_range_high"] == 0.5
    assert PolicyObjective("grpo", delta=None).hyperparameters == {}


def test_your_own(monkeypatch):
    monkeypatch.setattr(module, "POLICY_LOSSES", dict(POLICY_LOSSES))

    def tilted(log_ratios, advantages, *, tilt):
        return -(log_ratios + tilt) * advantages

    register("tilted", tilted, importance="sequence", normaliser="sequence_mean", tilt=1.0)
    tokens = decisions(float64([0.5, 1.5]), float64([0.0, 0.0]), float64([1.0, 1.0]), [2])
    assert PolicyObjective("tilted")(tokens).tolist() == [-2.0, -2.0]
    assert PolicyObjective(tilted, tilt=0.0)(tokens).tolist() == [-0.5, -1.5]
    with pytest.raises(ValueError, match="there is a policy loss 'tilted' already"):
        register("tilted", tilted)
    with pytest.raises(ValueError, match="policy loss 'tilted' needs tilt"):
        PolicyObjective(tilted)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"loss": "gprp"}, "unknown policy loss 'gprp'; did you mean"),
        (
            {"loss": "grpo", "importance": "tokens"},
            "unknown level of importance 'tokens'; did you mean 'token'",
        ),
        ({"loss": "grpo", "normaliser": "mean"}, "unknown normaliser 'mean'"),
        ({"loss": "grpo", "beta": 0.1}, "'grpo' does not use beta; its hyper-parameters: clip_range"),
        ({"loss": "sapo", "temperature_positive": -1.0}, "sapo: temperatures must be positive"),
        ({"loss": "dr_grpo"}, "goes with 'constant' and with nothing else, got length=None"),
        ({"loss": "grpo", "length": 9}, "goes with 'constant' and with nothing else, got length=9"),
        ({"loss": lambda rewards: rewards}, "a policy loss cannot be given 'rewards'"),
        ({"loss": lambda ratios: ratios.mean()}, "it must return one value per token, and no mean"),
    ],
)
def test_mistakes_are_told_at_once(arguments, message):
    with pytest.raises(ValueError, match=message):
        PolicyObjective(**arguments)


def test_a_policy_loss_is_one_already():
    entry = PolicyLoss.of(lambda ratios, advantages: -ratios * advantages)
    assert policy_loss(entry) is entry
