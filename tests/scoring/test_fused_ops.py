"""The element-wise functions against the same formulas written out, and against finite differences."""

import pytest
import torch
from torch.nn.functional import silu

from lit_align.scoring import fused_ops
from lit_align.scoring.fused_ops import RMSNorm, Rotation, SwiGLU, swiglu


def randn(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed)).requires_grad_()


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_gradcheck_norm(offset):
    x, weight = randn(1, 3, 5), randn(5, seed=1)
    assert torch.autograd.gradcheck(lambda x, w: RMSNorm.apply(x, w, 1e-3, offset), (x, weight))


def test_gradcheck_swiglu():
    assert torch.autograd.gradcheck(SwiGLU.apply, (randn(1, 3, 5), randn(1, 3, 5, seed=1)))


def test_gradcheck_rotation():
    angles = randn(1, 3, 1, 2, seed=1).detach()
    assert torch.autograd.gradcheck(
        lambda x: Rotation.apply(x, angles.cos(), angles.sin()), (randn(1, 3, 2, 4),)
    )


def test_norm_by_hand():
    """x = (3, 4): mean square 12.5, so (3, 4) / 3.535534 = (0.848528, 1.131371); times the weights (1, 2)."""
    found = RMSNorm.apply(torch.tensor([[3.0, 4.0]]), torch.tensor([1.0, 2.0]), 0.0, 0.0)
    torch.testing.assert_close(found, torch.tensor([[0.848528, 2.262742]]))


def test_rotation_by_hand():
    """(1, 0) turned by a quarter is (0, 1)."""
    cos, sin = torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
    found = Rotation.apply(torch.tensor([[[[1.0, 0.0]]]]), cos, sin)
    torch.testing.assert_close(found, torch.tensor([[[[0.0, 1.0]]]]))


def test_norm_against_autograd_in_single_precision():
    x, weight, outer = (randn(1, 40, 64, dtype=torch.float32, seed=i) for i in range(3))
    weight = weight[0, 0].detach().requires_grad_()

    def plain(x, weight):
        return weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))

    ours, theirs = RMSNorm.apply(x, weight, 1e-6, 0.0), plain(x, weight)
    assert torch.equal(ours, theirs)
    found = torch.autograd.grad(ours, (x, weight), outer)
    torch.testing.assert_close(found, torch.autograd.grad(theirs, (x, weight), outer), rtol=1e-5, atol=1e-5)


def test_a_frozen_weight_gets_no_gradient():
    x, weight = randn(1, 3, 5), randn(5, seed=1).detach()
    RMSNorm.apply(x, weight, 1e-3, 0.0).sum().backward()
    assert x.grad is not None
    frozen, trained = randn(1, 3, 5).detach(), randn(5, seed=1)
    RMSNorm.apply(frozen, trained, 1e-3, 0.0).sum().backward()
    assert trained.grad is not None


def test_pieces_change_nothing(monkeypatch):
    gate, up, outer = (randn(2, 9, 8, seed=i) for i in range(3))
    whole = swiglu(gate, up)
    grads = torch.autograd.grad(whole, (gate, up), outer)
    monkeypatch.setattr(fused_ops, "PIECE", 20)  # two rows
    assert len(list(fused_ops._pieces(gate))) == 9
    assert torch.equal(swiglu(gate, up), whole)
    assert all(
        torch.equal(a, b)
        for a, b in zip(torch.autograd.grad(swiglu(gate, up), (gate, up), outer), grads, strict=True)
    )


def test_units_in_half_precision_round_as_the_library_does():
    gate, up, outer = (randn(4, 16, dtype=torch.bfloat16, seed=i) for i in range(3))
    ours, theirs = swiglu(gate, up), silu(gate) * up
    assert torch.equal(ours, theirs)
    found = torch.autograd.grad(ours, (gate, up), outer)
    for got, exact in zip(found, torch.autograd.grad(theirs, (gate, up), outer), strict=True):
        assert torch.equal(got, exact)


def test_a_rotation_in_half_precision_rounds_at_most_twice_as_much_as_one_rounding_does():
    """Tables and products in bf16, against float32 and one rounding, which is transformers' way."""
    heads = randn(1, 256, 4, 32, dtype=torch.bfloat16).detach()
    angles = torch.arange(256)[:, None] / 10_000 ** (torch.arange(0, 32, 2) / 32)
    cos, sin = angles.cos()[None, :, None], angles.sin()[None, :, None]
    exact = Rotation.apply(heads.double(), cos.double(), sin.double())
    once = Rotation.apply(heads.float(), cos, sin).bfloat16()
    ours = Rotation.apply(heads, cos.bfloat16(), sin.bfloat16())
    errors = [float((found.double() - exact).square().mean().sqrt()) for found in (ours, once)]
    assert errors[1] < errors[0] < 2 * errors[1]


def test_under_autocast_a_norm_hands_on_its_dtype():
    x, weight = randn(1, 3, 8, dtype=torch.float32), randn(8, dtype=torch.float32, seed=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = RMSNorm.apply(x, weight, 1e-6, 0.0)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, RMSNorm.apply(x, weight, 1e-6, 0.0).to(torch.bfloat16))
    found.sum().backward()
    assert x.grad.dtype == weight.grad.dtype == torch.float32
