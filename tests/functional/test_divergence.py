"""The generalised Jensen-Shannon divergence of two next-token distributions."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_align.functional.divergence import generalised_jsd

BETAS = [0.0, 0.1, 0.5, 0.9, 1.0]


def definition(student: torch.Tensor, teacher: torch.Tensor, beta: float) -> torch.Tensor:
    """GKD's equation, term by term, on probabilities, with autograd to differentiate it."""
    s, t = student.softmax(-1), teacher.softmax(-1)

    def kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
        return (p * (p.log() - q.log())).sum(-1)

    if beta == 0.0:
        return kl(t, s)
    if beta == 1.0:
        return kl(s, t)
    m = (1 - beta) * s + beta * t
    return beta * kl(t, m) + (1 - beta) * kl(s, m)


def test_by_hand():
    """s = (1/4, 3/4), t = (1/2, 1/2), m = (3/8, 5/8): KL(t ‖ m) = log(4/3)/2 + log(4/5)/2 = 0.032269,
    KL(s ‖ m) = log(2/3)/4 + 3 log(6/5)/4 = 0.035375; half of both is 0.033822.
    """
    student, teacher = torch.tensor([[1.0, 3.0]]).log(), torch.tensor([[1.0, 1.0]]).log()
    value, _ = generalised_jsd(student, teacher, beta=0.5)
    assert value.item() == pytest.approx(0.033822, abs=1e-6)
    value, _ = generalised_jsd(student, teacher, beta=1.0)  # log(1/2)/4 + 3 log(3/2)/4
    assert value.item() == pytest.approx(-math.log(2) / 4 + 3 * math.log(1.5) / 4, abs=1e-6)


@pytest.mark.parametrize("beta", BETAS)
def test_value_and_gradient_against_the_definition(beta):
    torch.manual_seed(0)
    student = (3 * torch.randn(5, 11, dtype=torch.float64)).requires_grad_()
    teacher = 3 * torch.randn(5, 11, dtype=torch.float64)
    expected = definition(student, teacher, beta)
    (slope,) = torch.autograd.grad(expected.sum(), student)
    value, found = generalised_jsd(student, teacher, beta=beta)
    torch.testing.assert_close(value, expected.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found, slope, rtol=1e-12, atol=1e-12)


@given(st.floats(0, 1), st.integers(0, 1000))
def test_never_negative_and_nothing_between_equals(beta, seed):
    generator = torch.Generator().manual_seed(seed)
    a, b = 5 * torch.randn(2, 4, 7, generator=generator, dtype=torch.float64)
    assert (generalised_jsd(a, b, beta=beta)[0] >= -1e-12).all()
    value, slope = generalised_jsd(a, a, beta=beta)
    assert value.abs().max() < 1e-12
    assert slope.abs().max() < 1e-12


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_a_token_that_neither_can_say_counts_for_nothing(beta):
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 3, 5, dtype=torch.float64)
    nothing = torch.full((3, 1), -torch.inf, dtype=torch.float64)
    value, slope = generalised_jsd(student, teacher, beta=beta)
    wider = [torch.cat((z, nothing), 1) for z in (student, teacher)]
    value_too, slope_too = generalised_jsd(*wider, beta=beta)
    torch.testing.assert_close(value, value_too)
    torch.testing.assert_close(slope_too, torch.cat((slope, torch.zeros(3, 1, dtype=torch.float64)), 1))


def test_what_does_not_belong_together_is_refused():
    with pytest.raises(ValueError, match=r"student's logits are \[1, 2\].*teacher's \[1, 3\]"):
        generalised_jsd(torch.zeros(1, 2), torch.zeros(1, 3))
    with pytest.raises(ValueError, match=r"beta is 1\.5; it is the teacher's share"):
        generalised_jsd(torch.zeros(1, 2), torch.zeros(1, 2), beta=1.5)
