"""Mixtures of preference losses."""

import math

import pytest
import torch

from lit_align.losses import dpo
from lit_align.losses.objective import PreferenceObjective
from lit_align.losses.preference import PREFERENCE_LOSSES, Pair


def leads(*values):
    """Pairs whose Δ are ``values`` for the chosen and 0 for the rejected, of 2 tokens each."""
    chosen = torch.tensor(values)
    zero = torch.zeros_like(chosen)
    return Pair(chosen, zero, zero, zero, zero + 2, zero + 2, -chosen)


def test_mixture_by_hand():
    """Δ_w = 2, β = ½: sigmoid 0.313262; bco 0.313262 + log 2 = 1.006409; sft -2/2 = -1.
    0.8 · 0.313262 + 0.2 · 1.006409 + 1 · -1 = -0.548109.
    """
    objective = PreferenceObjective({"sigmoid": 0.8, "bco_pair": 0.2, "sft": 1.0}, beta=0.5)
    torch.testing.assert_close(objective(leads(2.0)), torch.tensor([-0.548109]))
    values = objective.each(leads(2.0))
    assert list(values) == ["sigmoid", "bco_pair", "sft"]
    torch.testing.assert_close(values["bco_pair"], torch.tensor([1.006409]))


def test_divergence_by_hand():
    """Δ_w = log 2 under the forward KL: s = ½; β = 2: log(1 + e^-1) = 0.313262."""
    objective = PreferenceObjective("sigmoid", divergence="forward_kl", beta=2.0)
    torch.testing.assert_close(objective(leads(math.log(2))), torch.tensor([0.313262]))


def test_alpha_divergence_of_one_is_the_default():
    plain = PreferenceObjective("hinge", beta=0.3)
    alpha = PreferenceObjective("hinge", divergence="alpha_divergence", alpha=1.0, beta=0.3)
    assert torch.equal(plain(leads(1.0, -4.0)), alpha(leads(1.0, -4.0)))


def test_functions_stand_where_names_do():
    def square(chosen_scores, rejected_scores, *, beta):
        return (1 - beta * (chosen_scores - rejected_scores)) ** 2

    objective = PreferenceObjective({"hinge": 1.0, square: 2.0}, divergence=lambda x: 3 * x, beta=0.5)
    assert objective(leads(1.0)).tolist() == [0.5]
    assert PreferenceObjective(dpo.hinge, beta=0.5)(leads(1.0)).tolist() == [0.5]


@pytest.mark.parametrize("name", PREFERENCE_LOSSES)
def test_every_loss_by_name(name):
    smoothing = 0.1 if "label_smoothing" in PREFERENCE_LOSSES[name].hyperparameters else 0.0
    objective = PreferenceObjective(name, beta=0.1, label_smoothing=smoothing, tau=None)
    losses = objective(leads(1.0, -1.0, 0.5))
    assert losses.shape == (3,)
    assert torch.isfinite(losses).all()
    assert objective.couples_batch == PREFERENCE_LOSSES[name].couples_batch
    assert objective.uses_reference == (not name.startswith("sft"))


def test_the_weight_of_a_loss_scales_its_gradient():
    gradients = []
    for weight in (1.0, 3.0):
        chosen = torch.tensor([1.0], requires_grad=True)
        zero = torch.zeros(1)
        pair = Pair(chosen, zero, zero, zero, zero, zero, zero)
        PreferenceObjective({"sigmoid": weight}, beta=0.5)(pair).sum().backward()
        gradients.append(chosen.grad)
    torch.testing.assert_close(3 * gradients[0], gradients[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"losses": "sigmoid"}, "'sigmoid' needs beta"),
        ({"losses": "cdpo", "beta": 0.1}, "'cdpo' needs label_smoothing"),
        ({"losses": {}, "beta": 0.1}, "no preference loss"),
        (
            {"losses": "exo_pair", "beta": 0.1, "label_smoothing": 0.0},
            "exo_pair: label_smoothing must be above 0",
        ),
        ({"losses": "robust", "beta": 0.1, "label_smoothing": 0.5}, r"robust: label_smoothing .* \[0, 0.5\)"),
        ({"losses": "ipo", "beta": 0.0}, "ipo: beta must be positive"),
        ({"losses": "sigmoid", "beta": 0.1, "label_smoothing": 0.2}, "would not use it; cdpo"),
        ({"losses": "sigmoid", "beta": 0.1, "gamma": 0.2}, "gamma is given, but sigmoid would not use it"),
        (
            {"losses": {"sigmoid": 1, dpo.sigmoid: 1}, "beta": 0.1},
            "two preference losses are called 'sigmoid'",
        ),
    ],
)
def test_what_cannot_be_is_refused_at_construction(arguments, message):
    with pytest.raises(ValueError, match=message):
        PreferenceObjective(**arguments)


@pytest.mark.parametrize(
    "name", ["nca_pair", "bco_pair", "sppo_hard", "aot", "aot_unpaired", "apo_zero", "apo_down"]
)
def test_other_divergences_are_refused_where_they_are_not_defined(name):
    with pytest.raises(ValueError, match=rf"^{name}: defined for the reverse KL .* got 'js_divergence'"):
        PreferenceObjective(
            {"sigmoid": 1, name: 1}, divergence="js_divergence", beta=0.1, label_smoothing=0.0
        )
    PreferenceObjective({"sigmoid": 1, name: 1}, divergence="reverse_kl", beta=0.1, label_smoothing=0.0)


def test_a_loss_that_returns_a_mean_is_refused():
    def mean(chosen_scores):
        return chosen_scores.mean()

    with pytest.raises(ValueError, match=r"'mean' returned shape \[\] .* one value per pair"):
        PreferenceObjective(mean)
