"""Clipping inside the optimiser's step against torch's clipping before it."""

import pytest
import torch
from torch.nn.utils import clip_grad_norm_
from torch.optim import SGD, Adam, AdamW

from lit_align.algorithms.clipping import clip_in_step, forget_scale


def parameters(seed: int = 0) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    found = [torch.nn.Parameter(torch.randn(5, 4, generator=generator)) for _ in range(3)]
    for p in found:
        p.grad = 10 * torch.randn(p.shape, generator=generator)
    return found


@pytest.mark.parametrize("kind", [Adam, AdamW])
@pytest.mark.parametrize("limit", [1.0, 0.01, 1000.0])
def test_equals_clipping_before_the_step(kind, limit):
    ours, theirs = parameters(), parameters()
    mine, other = kind(ours, lr=0.1, fused=True), kind(theirs, lr=0.1, fused=True)
    for _ in range(3):
        assert clip_in_step(mine, limit, None, "32-true")
        mine.step()
        forget_scale(mine)
        clip_grad_norm_(theirs, limit)
        other.step()
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-7)
            a.grad, b.grad = 3 * torch.ones_like(a), 3 * torch.ones_like(b)


def test_the_scale_goes_with_the_step():
    """A step without clipping, after one with, takes the gradients as they are."""
    (p,) = parameters()[:1]
    optimizer = AdamW([p], lr=0.1, fused=True)
    assert clip_in_step(optimizer, 0.1, "norm", "32-true")
    forget_scale(optimizer)
    before = p.grad.clone()
    optimizer.step()
    assert torch.equal(p.grad, before)


@pytest.mark.parametrize(
    ("make", "limit", "algorithm", "precision"),
    [
        (lambda p: SGD(p, lr=0.1), 1.0, "norm", "32-true"),
        (lambda p: AdamW(p, lr=0.1), 1.0, "norm", "32-true"),
        (lambda p: AdamW(p, lr=0.1, fused=True), 1.0, "value", "32-true"),
        (lambda p: AdamW(p, lr=0.1, fused=True), 1.0, "norm", "16-mixed"),
        (lambda p: AdamW(p, lr=0.1, fused=True), None, None, "32-true"),
    ],
    ids=["other optimiser", "not fused", "by value", "float16", "no limit"],
)
def test_what_it_leaves_to_the_trainer(make, limit, algorithm, precision):
    optimizer = make(parameters())
    assert not clip_in_step(optimizer, limit, algorithm, precision)
    assert getattr(optimizer, "grad_scale", None) is None
