"""Token losses of supervised fine-tuning."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_align.losses.sft import dft, nll


def test_nll_by_hand():
    """A token of probability 1/2 costs log 2, a certain one nothing."""
    torch.testing.assert_close(nll(torch.tensor([math.log(0.5), 0.0])), torch.tensor([0.693147, 0.0]))


def test_dft_by_hand():
    """-p log p: 1/2 log 2 = 0.346574 at p = 1/2; 1/4 log 4 = 0.346574 at p = 1/4."""
    torch.testing.assert_close(dft(torch.tensor([0.5, 0.25]).log()), torch.tensor([0.346574, 0.346574]))


def test_dft_weight_carries_no_gradient():
    """d/d log p of -sg(p) log p is -p = -1/2; with the gradient of the weight it were -p (1 + log p)."""
    logps = torch.tensor([0.5], dtype=torch.float64).log().requires_grad_()
    dft(logps).sum().backward()
    assert logps.grad.item() == pytest.approx(-0.5, rel=1e-12)


def test_dft_gradient_in_the_logits_is_bounded():
    """d/dz of -sg(p) log p is -p (1 - p) at the target: nothing explodes where p goes to 0."""
    logits = torch.tensor([[0.0, 100.0]], requires_grad=True)
    dft(torch.log_softmax(logits, -1)[:, 0]).sum().backward()
    assert logits.grad.abs().max() < 1e-6


@given(st.floats(-1e4, 0))
def test_values_and_gradients_are_finite_and_nonnegative(logp):
    logps = torch.tensor([logp], requires_grad=True)
    for loss in (nll, dft):
        value = loss(logps)
        (gradient,) = torch.autograd.grad(value.sum(), logps)
        assert value >= 0
        assert torch.isfinite(value).all()
        assert torch.isfinite(gradient).all()
        assert gradient <= 0


def test_dft_is_never_above_nll():
    logps = torch.linspace(-20, 0, 50)
    assert (dft(logps) <= nll(logps)).all()


def test_nll_gradcheck():
    assert torch.autograd.gradcheck(nll, torch.tensor([-1.0, -3.0], dtype=torch.float64, requires_grad=True))
