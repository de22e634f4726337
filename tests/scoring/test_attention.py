"""Attention of a flat row in lower precision."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lit_align.batches import Forest
from lit_align.scoring.attention import FORMS, carrier, forest_attention
from lit_align.scoring.layout import flat_layout


def attend(states: list[torch.Tensor], layout) -> tuple[torch.Tensor, list[torch.Tensor]]:
    leaves = [t.clone().requires_grad_() for t in states]
    module = nn.Identity()
    module.config = SimpleNamespace(_attn_implementation=FORMS["sdpa"])
    out, _ = forest_attention(module, *leaves, carrier(layout), scaling=0.25)
    generator = torch.Generator().manual_seed(1)
    outer = torch.randn(out.shape, generator=generator).bfloat16().to(out.dtype)
    with torch.no_grad():
        again, _ = forest_attention(module, *leaves, carrier(layout), scaling=0.25)
    assert torch.equal(again, out), "a reference that is the policy says something else"
    return out.detach(), list(torch.autograd.grad(out, leaves, outer))


@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_is_rounded_at_the_ends_only(autocast):
    layout = flat_layout(Forest.from_lists([[5] * 7, [6] * 3], [[[7] * 9, [8] * 4], [[9] * 12]]))
    length = layout.input_ids.shape[1]
    generator = torch.Generator().manual_seed(0)
    states = [torch.randn(1, heads, length, 16, generator=generator).bfloat16() for heads in (4, 2, 2)]
    exact, exact_grads = attend([t.float() for t in states], layout)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        out, grads = attend(states, layout)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, exact.bfloat16())
    for grad, wanted in zip(grads, exact_grads, strict=True):
        assert torch.equal(grad, wanted.bfloat16())
