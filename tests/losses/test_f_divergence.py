"""Scores of other divergences, against the definitions of the divergences themselves."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_align.losses.f_divergence import alpha_divergence, forward_kl, js_divergence, reverse_kl

# The generators f of Table 1 of the paper, of u = π/π_ref; its α is 1 - ours.
GENERATORS = {
    "reverse_kl": (reverse_kl, lambda u: u * u.log()),
    "forward_kl": (forward_kl, lambda u: -u.log()),
    "js_divergence": (js_divergence, lambda u: u * u.log() - (u + 1) * ((u + 1) / 2).log()),
    "alpha_0.3": (
        lambda x: alpha_divergence(x, alpha=0.3),
        lambda u: (u ** (1 - 0.7) - (1 - 0.7) * u - 0.7) / (0.7 * (0.7 - 1)),
    ),
}


def test_by_hand():
    """u = 2. Reverse KL log 2; forward 1 - 1/2; Jensen-Shannon log(4/3) = 0.287682; α = 1/2:
    (2^-½ - 1) / -½ = 0.585786.
    """
    two = torch.tensor([2.0]).log()
    assert reverse_kl(two).item() == pytest.approx(math.log(2))
    assert forward_kl(two).item() == pytest.approx(0.5)
    assert js_divergence(two).item() == pytest.approx(0.287682, rel=1e-5)
    assert alpha_divergence(two, alpha=0.5).item() == pytest.approx(0.585786, rel=1e-5)


@pytest.mark.parametrize("name", GENERATORS)
@given(first=st.floats(-5, 5), second=st.floats(-5, 5))
def test_a_difference_of_scores_is_one_of_derivatives(name, first, second):
    """Theorem 1: the reward is β f'(π/π_ref), and only differences of it matter."""
    scores, generator = GENERATORS[name]
    logratios = torch.tensor([first, second], dtype=torch.float64)
    ratios = logratios.exp().requires_grad_()
    (derivative,) = torch.autograd.grad(generator(ratios).sum(), ratios)
    ours = scores(logratios)
    torch.testing.assert_close(ours[0] - ours[1], derivative[0] - derivative[1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", GENERATORS)
@given(st.lists(st.floats(-70, 70), min_size=2, max_size=2, unique=True))
def test_scores_rise_with_the_likelihood(name, values):
    scores, _ = GENERATORS[name]
    low, high = scores(torch.tensor(sorted(values), dtype=torch.float64))
    assert low <= high


@pytest.mark.parametrize("name", GENERATORS)
def test_the_reference_scores_zero(name):
    assert abs(GENERATORS[name][0](torch.zeros(1, dtype=torch.float64)).item()) < 1e-15


@given(st.floats(-20, 20))
def test_alpha_runs_from_forward_to_reverse(logratio):
    x = torch.tensor([logratio], dtype=torch.float64)
    assert torch.equal(alpha_divergence(x, alpha=1.0), reverse_kl(x))
    torch.testing.assert_close(alpha_divergence(x, alpha=1 + 1e-9), reverse_kl(x), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(alpha_divergence(x, alpha=1 - 1e-9), reverse_kl(x), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(forward_kl(x), 1 - (-x).exp(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 2.0])
def test_nothing_overflows(dtype, alpha):
    x = torch.tensor([1e4, -1e4], dtype=dtype, requires_grad=True)
    value = alpha_divergence(x, alpha=alpha)
    (gradient,) = torch.autograd.grad(value.sum(), x)
    assert torch.isfinite(value).all()
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("name", GENERATORS)
def test_gradcheck(name):
    x = torch.tensor([-2.0, -0.1, 0.0, 0.7, 3.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(GENERATORS[name][0], x)
