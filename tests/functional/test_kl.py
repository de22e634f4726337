"""Estimators of the KL divergence."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_align.functional.kl import KL_ESTIMATORS, absolute, full, importance_corrected, k1, k2, k3

TWO, HALF = math.log(2), math.log(0.5)


def float64(values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    ("name", "twice", "half"),
    [
        ("k1", TWO, HALF),
        ("abs", TWO, TWO),
        ("k2", TWO**2 / 2, TWO**2 / 2),
        ("k3", TWO - 0.5, 1 - TWO),
    ],
)
def test_by_hand(name, twice, half):
    """Tokens twice and half as likely as under the reference: d = ±log 2, e^(-d) = ½ and 2."""
    reference = float64([-3.0, -3.0])
    found = KL_ESTIMATORS[name](reference + float64([TWO, HALF]), reference)
    torch.testing.assert_close(found, float64([twice, half]), rtol=1e-14, atol=1e-15)


def test_full_by_hand():
    """(¾, ¼) from (½, ½): ¾ log 3/2 + ¼ log ½ = 0.130812."""
    logits = float64([[0.75, 0.25]]).log()
    assert full(logits, torch.zeros(1, 2)).item() == pytest.approx(0.130812, abs=1e-6)


def test_a_token_that_cannot_occur_costs_nothing():
    """0 log 0 is 0; and the gradient is a number."""
    logits = torch.tensor([[0.0, -torch.inf]], requires_grad=True)
    value = full(logits, torch.zeros(1, 2))
    value.sum().backward()
    assert value.item() == pytest.approx(math.log(2))
    assert torch.isfinite(logits.grad[:, 0]).all()


def test_expectations():
    """Over all tokens of a vocabulary, k1 and k3 average to the divergence itself: they are unbiased."""
    torch.manual_seed(0)
    logits, other = torch.randn(2, 1, 7, dtype=torch.float64)
    p, q = torch.log_softmax(logits, -1), torch.log_softmax(other, -1)
    exact = full(logits, other)
    for estimator in (k1, k3):
        torch.testing.assert_close((p.exp() * estimator(p, q)).sum(-1), exact)


def test_the_corrected_gradient_is_that_of_the_divergence():
    """E over the old policy of d(ρ k3) is d KL, and that of k3 alone is not."""
    torch.manual_seed(0)
    logits, old, other = torch.randn(3, 7, dtype=torch.float64)
    logits.requires_grad_()
    p, q, mu = (torch.log_softmax(x, -1) for x in (logits, other, old))
    estimate = (mu.exp() * importance_corrected(k3(p, q), (p - mu).exp())).sum()
    (gradient,) = torch.autograd.grad(estimate, logits, retain_graph=True)
    (exact,) = torch.autograd.grad(full(logits[None], other[None]).sum(), logits)
    torch.testing.assert_close(gradient, exact)
    (plain,) = torch.autograd.grad((mu.exp() * k3(p, q)).sum(), logits)
    assert not torch.allclose(plain, exact, rtol=0.1)


@given(st.floats(-30, 30))
def test_signs_and_zero(difference):
    p, q = float64([difference]), torch.zeros(1, dtype=torch.float64)
    assert (k1(p, q) == difference).all()
    for estimator in (absolute, k2, k3):
        assert estimator(p, q) >= 0
        assert estimator(q, q) == 0


def test_k3_of_nearly_equal_policies_survives_float32():
    """d = 10^-4: d²/2 = 5 10^-9. Without expm1 it would be 0, or negative."""
    found = k3(torch.tensor([1e-4]), torch.zeros(1)).item()
    assert found == pytest.approx(5e-9, rel=0.4)
    assert found >= 0


def test_gradcheck():
    given_logps = tuple(torch.randn(5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    for estimator in (k1, k2, k3, absolute):
        assert torch.autograd.gradcheck(estimator, given_logps)
    logits = tuple(torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(full, logits)
