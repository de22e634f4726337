"""Every registered preference loss: against its equation, its gradient, its limits, and its neighbours."""

import inspect
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_align.losses.preference import (
    INPUTS,
    PREFERENCE_LOSSES,
    Pair,
    PreferenceLoss,
    divergence_scores,
    preference_loss,
    register,
)

BETA, EPSILON, TAU = 0.3, 0.15, 0.4
HYPERPARAMETERS = {"beta": BETA, "label_smoothing": EPSILON, "tau": TAU}


def sigma(x):
    return 1 / (1 + math.exp(-x))


def log_sigma(x):
    return math.log(sigma(x))


def smoothed(x):
    return -(1 - EPSILON) * log_sigma(x) - EPSILON * log_sigma(-x)


# The equations, one pair of Python floats at a time: w and r are Δ of chosen and rejected, lw and lr lengths.
EQUATIONS = {
    "sigmoid": lambda w, r, lw, lr: -log_sigma(BETA * (w - r)),
    "cdpo": lambda w, r, lw, lr: smoothed(BETA * (w - r)),
    "robust": lambda w, r, lw, lr: (
        (-(1 - EPSILON) * log_sigma(BETA * (w - r)) + EPSILON * log_sigma(-BETA * (w - r)))
        / (1 - 2 * EPSILON)
    ),
    "hinge": lambda w, r, lw, lr: max(0, 1 - BETA * (w - r)),
    "sigmoid_norm": lambda w, r, lw, lr: -log_sigma(BETA * (w / lw - r / lr)),
    "ipo": lambda w, r, lw, lr: (w / lw - r / lr - 1 / (2 * BETA)) ** 2,
    "exo_pair": lambda w, r, lw, lr: sum(
        q * (math.log(q) - math.log(label))
        for q, label in [(sigma(BETA * (w - r)), 1 - EPSILON), (sigma(BETA * (r - w)), EPSILON)]
    ),
    "nca_pair": lambda w, r, lw, lr: (
        -log_sigma(BETA * w) - log_sigma(-BETA * w) / 2 - log_sigma(-BETA * r) / 2
    ),
    "bco_pair": lambda w, r, lw, lr: -log_sigma(BETA * w) - log_sigma(-BETA * r),
    "sppo_hard": lambda w, r, lw, lr: (w - 0.5 / BETA) ** 2 + (r + 0.5 / BETA) ** 2,
    "apo_zero": lambda w, r, lw, lr: 1 - sigma(BETA * w) + sigma(BETA * r),
    "apo_down": lambda w, r, lw, lr: sigma(BETA * w) + 1 - sigma(BETA * (w - r)),
    "discopop": lambda w, r, lw, lr: (
        -log_sigma(BETA * (w - r)) * (1 - sigma(BETA * (w - r) / TAU))
        + math.exp(-BETA * (w - r)) * sigma(BETA * (w - r) / TAU)
    ),
}
# At the reference every equation has a value that is known beforehand.
AT_THE_REFERENCE = {
    "sigmoid": math.log(2),
    "cdpo": math.log(2),
    "robust": math.log(2),
    "hinge": 1,
    "sigmoid_norm": math.log(2),
    "ipo": 1 / (2 * BETA) ** 2,
    "exo_pair": -math.log(2) - (math.log(1 - EPSILON) + math.log(EPSILON)) / 2,
    "nca_pair": 2 * math.log(2),
    "bco_pair": 2 * math.log(2),
    "sppo_hard": 0.5 / BETA**2,
    "apo_zero": 1,
    "apo_down": 1,
    "discopop": (math.log(2) + 1) / 2,
    "aot": math.log(2),
    "aot_unpaired": math.log(2),
}


def make_pair(size, *, seed=0, scale=3.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    chosen, rejected, chosen_reference, rejected_reference = (
        scale * torch.randn(4, size, dtype=dtype, generator=generator) - 20
    )
    lengths = torch.randint(1, 9, (2, size), generator=generator)
    return Pair(chosen, rejected, chosen_reference, rejected_reference, *lengths, -chosen)


def value(name, pair):
    loss = PREFERENCE_LOSSES[name]
    scores = {"chosen_scores": pair.chosen_logratios, "rejected_scores": pair.rejected_logratios}
    inputs = [scores[key] if key in scores else getattr(pair, key) for key in loss.inputs]
    return loss.function(*inputs, **{key: HYPERPARAMETERS[key] for key in loss.hyperparameters})


def rows(pair, index):
    return Pair(*(getattr(pair, field)[index] for field in Pair.__dataclass_fields__))


def test_every_loss_is_held_to_an_equation():
    assert set(EQUATIONS) | {"aot", "aot_unpaired", "sft", "sft_token_mean"} == set(PREFERENCE_LOSSES)
    assert set(AT_THE_REFERENCE) | {"sft", "sft_token_mean"} == set(PREFERENCE_LOSSES)


@pytest.mark.parametrize("name", EQUATIONS)
def test_against_the_equation(name):
    pair = make_pair(40)
    expected = [
        EQUATIONS[name](w, r, lw, lr)
        for w, r, lw, lr in zip(
            pair.chosen_logratios.tolist(),
            pair.rejected_logratios.tolist(),
            pair.chosen_lengths.tolist(),
            pair.rejected_lengths.tolist(),
            strict=True,
        )
    ]
    torch.testing.assert_close(
        value(name, pair), torch.tensor(expected, dtype=torch.float64), rtol=1e-10, atol=0
    )


@pytest.mark.parametrize("name", ["aot", "aot_unpaired"])
def test_sorted_losses_against_the_equation(name):
    pair = make_pair(9)
    if name == "aot":
        left = (pair.chosen_logps - pair.rejected_logps).tolist()
        right = (pair.chosen_reference_logps - pair.rejected_reference_logps).tolist()
    else:
        left, right = pair.chosen_logratios.tolist(), pair.rejected_logratios.tolist()
    expected = [smoothed(BETA * (a - b)) for a, b in zip(sorted(left), sorted(right), strict=True)]
    order = torch.tensor(left).argsort()
    torch.testing.assert_close(value(name, pair)[order], torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("name", AT_THE_REFERENCE)
def test_at_the_reference(name):
    """The first step of a run: policy and reference are the same model."""
    pair = make_pair(5)
    same = Pair(
        pair.chosen_logps,
        pair.rejected_logps,
        pair.chosen_logps,
        pair.rejected_logps,
        pair.chosen_lengths,
        pair.rejected_lengths,
        pair.chosen_nll,
    )
    expected = torch.full((5,), AT_THE_REFERENCE[name], dtype=torch.float64)
    torch.testing.assert_close(value(name, same), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", PREFERENCE_LOSSES)
def test_gradcheck(name):
    pair = make_pair(5, seed=3)
    logps = [
        t.clone().requires_grad_()
        for t in (
            pair.chosen_logps,
            pair.rejected_logps,
            pair.chosen_reference_logps,
            pair.rejected_reference_logps,
        )
    ]

    def function(chosen, rejected, chosen_reference, rejected_reference):
        lengths = pair.chosen_lengths, pair.rejected_lengths
        return value(name, Pair(chosen, rejected, chosen_reference, rejected_reference, *lengths, -chosen))

    assert torch.autograd.gradcheck(function, logps)


@pytest.mark.parametrize("lengths", [1, 1000])
@pytest.mark.parametrize("name", PREFERENCE_LOSSES)
def test_extreme_log_ratios_in_single_precision(name, lengths):
    extremes = torch.tensor([1e4, -1e4, 0.0])
    chosen, rejected = (t.clone() - 1e4 for t in torch.meshgrid(extremes, extremes, indexing="ij"))
    chosen, rejected = chosen.flatten().requires_grad_(), rejected.flatten().requires_grad_()
    reference, length = torch.full((9,), -1e4), torch.full((9,), lengths)
    losses = value(name, Pair(chosen, rejected, reference, reference, length, length, -chosen))
    gradients = torch.autograd.grad(losses.sum(), (chosen, rejected), allow_unused=True)
    assert torch.isfinite(losses).all()
    for gradient in gradients:
        assert gradient is None or torch.isfinite(gradient).all()


@pytest.mark.parametrize("divergence", ["forward_kl", "js_divergence", "alpha_divergence"])
@pytest.mark.parametrize("name", [k for k, v in PREFERENCE_LOSSES.items() if "chosen_scores" in v.inputs])
def test_extreme_log_ratios_under_another_divergence(name, divergence):
    """Where e^10000 itself overflows there is no number to be right about, but none may be NaN either."""
    extremes = torch.tensor([1e4, -1e4, 0.0])
    chosen, rejected = (
        t.flatten().requires_grad_() for t in torch.meshgrid(extremes, extremes, indexing="ij")
    )
    scores = divergence_scores(divergence, 0.5 if divergence == "alpha_divergence" else None)
    loss = PREFERENCE_LOSSES[name]
    lengths = {"chosen_lengths": torch.full((9,), 7), "rejected_lengths": torch.full((9,), 3)}
    given = {"chosen_scores": scores(chosen), "rejected_scores": scores(rejected), **lengths}
    losses = loss.function(
        *(given[key] for key in loss.inputs), **{key: HYPERPARAMETERS[key] for key in loss.hyperparameters}
    )
    gradients = torch.autograd.grad(losses.sum(), (chosen, rejected))
    assert not losses.isnan().any()
    assert not any(gradient.isnan().any() for gradient in gradients)
    if divergence == "js_divergence":
        assert torch.isfinite(losses).all()


@pytest.mark.parametrize("name", PREFERENCE_LOSSES)
def test_cutting_the_batch_changes_only_what_says_so(name):
    pair = make_pair(6)
    whole = value(name, pair)
    parts = torch.cat([value(name, rows(pair, slice(0, 2))), value(name, rows(pair, slice(2, 6)))])
    assert torch.equal(whole, parts) != PREFERENCE_LOSSES[name].couples_batch


@pytest.mark.parametrize("name", PREFERENCE_LOSSES)
@given(st.permutations(range(5)))
def test_a_value_belongs_to_its_pair(name, order):
    pair = make_pair(5)
    torch.testing.assert_close(value(name, rows(pair, list(order))), value(name, pair)[list(order)])


@pytest.mark.parametrize("name", PREFERENCE_LOSSES)
def test_a_completion_cut_to_nothing_is_no_division_by_zero(name):
    zeros = torch.zeros(2)
    assert torch.isfinite(value(name, Pair(zeros, zeros, zeros, zeros, zeros, zeros, zeros))).all()


@pytest.mark.parametrize(
    "name", sorted(set(PREFERENCE_LOSSES) - {"sft", "sft_token_mean", "nca_pair", "apo_down"})
)
def test_descent_widens_the_lead_near_the_reference(name):
    pair = make_pair(6, scale=0.1)
    chosen, rejected = (
        pair.chosen_logps.clone().requires_grad_(),
        pair.rejected_logps.clone().requires_grad_(),
    )
    references = pair.chosen_reference_logps, pair.rejected_reference_logps
    moving = Pair(chosen, rejected, *references, pair.chosen_lengths, pair.rejected_lengths, -chosen)
    value(name, moving).sum().backward()
    assert (chosen.grad < 0).all()
    assert (rejected.grad > 0).all()


def test_divergences_go_with_the_losses_of_scores():
    allowing = {name for name, loss in PREFERENCE_LOSSES.items() if loss.allows_divergence}
    assert allowing == {
        "sigmoid",
        "cdpo",
        "sigmoid_norm",
        "hinge",
        "ipo",
        "exo_pair",
        "robust",
        "discopop",
        "sft",
        "sft_token_mean",
    }


def test_every_input_has_a_loss_that_takes_it():
    assert {key for loss in PREFERENCE_LOSSES.values() for key in loss.inputs} == set(INPUTS)


@pytest.mark.parametrize("name", PREFERENCE_LOSSES)
def test_the_documentation_names_a_paper_and_the_shapes(name):
    text = inspect.getdoc(PREFERENCE_LOSSES[name].function)
    assert any(mark in text.split("\n\n")[1] for mark in ("arXiv", "(2023)", "TRL")), text
    for argument in PREFERENCE_LOSSES[name].inputs:
        assert f"{argument}: ``[B]``" in text


def test_registering_makes_a_name(monkeypatch):
    monkeypatch.setattr("lit_align.losses.preference.PREFERENCE_LOSSES", {})

    def quadratic(chosen_logratios, chosen_lengths, *, beta, power=2.0):
        return (beta * chosen_logratios / chosen_lengths) ** power

    register("quadratic", quadratic)
    loss = preference_loss("quadratic")
    assert loss.inputs == ("chosen_logratios", "chosen_lengths")
    assert loss.hyperparameters == {"beta", "power"}
    assert loss.required == {"beta"}
    assert not loss.allows_divergence
    with pytest.raises(ValueError, match="already"):
        register("quadratic", quadratic)


def test_a_registered_function_is_found_with_what_is_known_of_it():
    assert preference_loss(PREFERENCE_LOSSES["aot"].function).couples_batch


def test_unknown_names_get_the_nearest():
    with pytest.raises(ValueError, match="unknown preference loss 'sigmod'; did you mean 'sigmoid'"):
        preference_loss("sigmod")
    with pytest.raises(ValueError, match="unknown divergence 'js'"):
        divergence_scores("js")


@pytest.mark.parametrize(
    "function", [lambda logits, *, beta: logits, lambda *tensors: 0, lambda **tensors: 0]
)
def test_a_function_with_other_arguments_is_refused(function):
    with pytest.raises(ValueError, match=r"cannot be given .(logits|tensors)"):
        PreferenceLoss.of(function)


def test_alpha_goes_with_its_divergence_only():
    with pytest.raises(ValueError, match="needs alpha"):
        divergence_scores("alpha_divergence")
    with pytest.raises(ValueError, match="alpha is for alpha_divergence only"):
        divergence_scores("forward_kl", 0.5)
