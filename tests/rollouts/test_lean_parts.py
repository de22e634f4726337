"""Parts of the lean step against the modules they are made of."""

import pytest
import torch
from torch import nn

from lit_align.rollouts.lean_parts import Norm, addition, gated, joined


def layers(*shapes, bias):
    torch.manual_seed(0)
    return [nn.Linear(*shape, bias=bias) for shape in shapes]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("heads", [(), (5,)])
def test_norm(heads, dtype):
    torch.manual_seed(0)
    x, weight = torch.randn(3, *heads, 8).mul(1e-3), torch.randn(*heads, 8)
    x[0] = 0
    x, weight = x.to(dtype), weight.to(dtype)
    wide = x.double()
    expected = wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    found = Norm(weight, 1e-5)(x)
    assert found.dtype == dtype
    allowed = {"rtol": 1e-5, "atol": 1e-7} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 1e-3}
    torch.testing.assert_close(found.double(), expected, **allowed)


@pytest.mark.parametrize("bias", [False, True])
def test_products(bias):
    query, key, down = layers((8, 6), (8, 4), (6, 8), bias=bias)
    x, states = torch.randn(3, 8), torch.randn(3, 8)
    with torch.no_grad():
        torch.testing.assert_close(joined([query, key])(x), torch.cat((query(x), key(x)), -1))
        inner = query(x)
        torch.testing.assert_close(addition(down)(states.clone(), inner), states + down(inner))
        gate, up = layers((8, 6), (8, 6), bias=bias)
        expected = nn.functional.silu(gate(x)) * up(x)
        torch.testing.assert_close(gated(gate, up, nn.SiLU())(x), expected)
        expected = nn.functional.gelu(gate(x)) * up(x)
        torch.testing.assert_close(gated(gate, up, nn.GELU())(x), expected)
