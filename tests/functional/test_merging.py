"""Merged weights, by numbers that a pencil can check."""

import math

import pytest
import torch

from lit_align.functional.merging import linear, slerp, task_arithmetic


def test_linear() -> None:
    """A quarter of the way from (0, 4) to (8, 0) is (2, 3); twice the way is (16, -4)."""
    first, second = torch.tensor([0.0, 4.0]), torch.tensor([8.0, 0.0])
    assert linear(first, second, 0.25).tolist() == [2, 3]
    assert linear(first, second, 2.0).tolist() == [16, -4]
    assert linear(first.bfloat16(), second.bfloat16(), 0.1).dtype == torch.float32


def test_slerp_of_a_right_angle() -> None:
    """From (1, 0) to (0, 1) a third of the way is 30 degrees: (cos 30, sin 30)."""
    found = slerp(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), 1 / 3)
    torch.testing.assert_close(found, torch.tensor([math.sqrt(3) / 2, 0.5]))


def test_slerp_keeps_the_length_and_the_ends() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 3, 4, generator=generator)
    second *= first.norm() / second.norm()
    for weight in (0.1, 0.5, 0.9):
        assert float(slerp(first, second, weight).norm()) == pytest.approx(float(first.norm()), rel=1e-6)
    torch.testing.assert_close(slerp(first, second, 0.0), first)
    torch.testing.assert_close(slerp(first, second, 1.0), second)


@pytest.mark.parametrize("second", [[2.0, 4.0], [-1.0, -2.0], [0.0, 0.0]])
def test_slerp_without_an_arc_is_linear(second: list[float]) -> None:
    first, other = torch.tensor([1.0, 2.0]), torch.tensor(second)
    torch.testing.assert_close(slerp(first, other, 0.3), linear(first, other, 0.3))


def test_task_arithmetic() -> None:
    """1 + 0.5 (3 - 1) - 2 (0 - 1) = 4."""
    found = task_arithmetic(torch.tensor([1.0]), [torch.tensor([3.0]), torch.tensor([0.0])], [0.5, -2.0])
    assert found.tolist() == [4]
