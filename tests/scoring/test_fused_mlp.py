"""The gated MLP as one function against its three layers."""

import pytest
import torch
from torch import nn
from torch.nn.functional import silu

from lit_align.scoring.fused_mlp import GatedMLP, is_plain


def tensors() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, 5, 4), (6, 4), (6, 4), (4, 6)]
    return [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]


def plain(x, gate, up, down):
    return (silu(x @ gate.T) * (x @ up.T)) @ down.T


def test_values_and_gradients():
    leaves = [t.requires_grad_() for t in tensors()]
    torch.testing.assert_close(GatedMLP.apply(*leaves), plain(*leaves))
    assert torch.autograd.gradcheck(GatedMLP.apply, leaves)


@pytest.mark.parametrize("trained", range(4))
def test_what_is_frozen_gets_no_gradient(trained):
    ours, theirs = tensors(), tensors()
    for of in (ours, theirs):
        of[trained].requires_grad_()
    GatedMLP.apply(*ours).square().sum().backward()
    plain(*theirs).square().sum().backward()
    torch.testing.assert_close(ours[trained].grad, theirs[trained].grad)
    assert all(t.grad is None for i, t in enumerate(ours) if i != trained)


def test_a_graph_that_is_kept_can_be_differentiated_again():
    leaves = [t.requires_grad_() for t in tensors()]
    total = GatedMLP.apply(*leaves).square().sum()
    first = torch.autograd.grad(total, leaves, retain_graph=True)
    for a, b in zip(first, torch.autograd.grad(total, leaves), strict=True):
        assert torch.equal(a, b)


def hooked() -> nn.Linear:
    layer = nn.Linear(4, 4, bias=False)
    layer.register_forward_hook(lambda *_: None)
    return layer


class Adapted(nn.Linear):
    pass


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (nn.Linear(4, 4, bias=False), True),
        (nn.Linear(4, 4), False),
        (nn.Linear(4, 4, bias=False).bfloat16(), False),
        (Adapted(4, 4, bias=False), False),
        (hooked(), False),
    ],
    ids=["plain", "bias", "another dtype", "another class", "hooked"],
)
def test_which_layers_are_plain(layer, expected):
    x = torch.zeros(1, 2, 4)
    assert is_plain(x, nn.Linear(4, 4, bias=False), layer) is expected
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not is_plain(x, layer)
