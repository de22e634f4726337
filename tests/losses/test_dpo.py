"""DPO and the losses of the lead, in numbers that a pencil can check."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_align.losses.dpo import cdpo, hinge, robust, sigmoid, sigmoid_norm

score = st.floats(-100, 100)
noise = st.floats(0, 0.49)


def tensors(*values):
    return [torch.tensor([value], dtype=torch.float64) for value in values]


def test_sigmoid_by_hand():
    """β = 1/2, d = 2: log(1 + e^-1) = 0.313262. d = -2: 1.313262. d = 0: log 2."""
    losses = sigmoid(torch.tensor([2.0, 0.0, 5.0]), torch.tensor([0.0, 2.0, 5.0]), beta=0.5)
    torch.testing.assert_close(losses, torch.tensor([0.313262, 1.313262, math.log(2)]))


def test_cdpo_by_hand():
    """ε = 0.1, βd = 1: 0.9 · 0.313262 + 0.1 · 1.313262 = 0.413262."""
    (loss,) = cdpo(torch.tensor([2.0]), torch.tensor([0.0]), beta=0.5, label_smoothing=0.1)
    assert loss.item() == pytest.approx(0.413262, rel=1e-6)


def test_robust_by_hand():
    """ε = 0.1, βd = 1: (0.9 · 0.313262 - 0.1 · 1.313262) / 0.8 = 0.188262."""
    (loss,) = robust(torch.tensor([2.0]), torch.tensor([0.0]), beta=0.5, label_smoothing=0.1)
    assert loss.item() == pytest.approx(0.188262, rel=1e-5)


def test_hinge_by_hand():
    """β = 1/2: a lead of 1 is half of what is asked, a lead of 4 is more than enough, -2 costs 2."""
    chosen = torch.tensor([1.0, 4.0, -2.0])
    assert hinge(chosen, torch.zeros(3), beta=0.5).tolist() == [0.5, 0.0, 2.0]


def test_sigmoid_norm_by_hand():
    """6/3 - 4/4 = 1: log(1 + e^-1) = 0.313262. A completion of no token counts as one: log 2."""
    losses = sigmoid_norm(
        torch.tensor([6.0, 0.0]),
        torch.tensor([4.0, 0.0]),
        torch.tensor([3, 0]),
        torch.tensor([4, 0]),
        beta=1.0,
    )
    torch.testing.assert_close(losses, torch.tensor([0.313262, math.log(2)]))


def test_beta_to_zero_ignores_the_scores():
    losses = sigmoid(torch.tensor([3.0]), torch.tensor([-40.0]), beta=1e-9)
    torch.testing.assert_close(losses, torch.tensor([math.log(2)]))


def test_gradient_of_sigmoid_is_the_paper_s():
    """DPO after Eq. 7: dL/ds_w = -β σ(-βd), and the opposite for s_l. β = 1/2, d = 2: -0.134471."""
    chosen, rejected = (x.requires_grad_() for x in tensors(2.0, 0.0))
    sigmoid(chosen, rejected, beta=0.5).sum().backward()
    assert chosen.grad.item() == pytest.approx(-0.5 / (1 + math.e), rel=1e-12)
    assert rejected.grad.item() == pytest.approx(0.5 / (1 + math.e), rel=1e-12)


@given(chosen=score, rejected=score, shift=score)
def test_only_the_lead_counts(chosen, rejected, shift):
    w, r, up = tensors(chosen, rejected, shift)
    for loss in (sigmoid, hinge):
        torch.testing.assert_close(loss(w, r, beta=0.3), loss(w + up, r + up, beta=0.3))


@given(chosen=score, rejected=score)
def test_turning_a_pair_round_costs_its_lead(chosen, rejected):
    """-log σ(-x) + log σ(x) = x."""
    w, r = tensors(chosen, rejected)
    torch.testing.assert_close(sigmoid(r, w, beta=0.3) - sigmoid(w, r, beta=0.3), 0.3 * (w - r))


@given(chosen=score, rejected=score, smoothing=noise)
def test_cdpo_is_the_expected_loss_of_noisy_labels(chosen, rejected, smoothing):
    w, r = tensors(chosen, rejected)
    expected = (1 - smoothing) * sigmoid(w, r, beta=0.3) + smoothing * sigmoid(r, w, beta=0.3)
    torch.testing.assert_close(cdpo(w, r, beta=0.3, label_smoothing=smoothing), expected)


@given(chosen=score, rejected=score, smoothing=st.floats(0, 0.4))
def test_robust_is_unbiased_under_label_noise(chosen, rejected, smoothing):
    """With a share ε of flipped labels its expectation is the DPO loss of the true labels."""
    w, r = tensors(chosen, rejected)
    right = robust(w, r, beta=0.3, label_smoothing=smoothing)
    flipped = robust(r, w, beta=0.3, label_smoothing=smoothing)
    expected = (1 - smoothing) * right + smoothing * flipped
    torch.testing.assert_close(expected, sigmoid(w, r, beta=0.3), rtol=1e-9, atol=1e-9)


def test_without_noise_the_noisy_losses_are_dpo():
    w, r = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
    for loss in (cdpo, robust):
        torch.testing.assert_close(loss(w, r, beta=0.3, label_smoothing=0.0), sigmoid(w, r, beta=0.3))


@pytest.mark.parametrize("loss", [cdpo, robust])
@pytest.mark.parametrize("smoothing", [0.5, 0.7, -0.1])
def test_a_smoothing_that_is_none_is_refused(loss, smoothing):
    with pytest.raises(ValueError, match=rf"{loss.__name__}: label_smoothing .* got {smoothing}"):
        loss(torch.zeros(1), torch.zeros(1), beta=0.1, label_smoothing=smoothing)
