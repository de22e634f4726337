"""The value loss of a minibatch, with numbers worked out by hand."""

import pytest
import torch

from lit_align.algorithms.value_step import value_loss
from lit_align.batches import Forest


def minibatch() -> Forest:
    """Three tokens, the last of which weighs nothing: returns 0, 4, 9; old values 0.5, 3, 0."""
    batch = Forest.from_lists([[5]], [[[6, 7, 8]]], weights=[[[1, 1, 0]]])
    batch = batch.with_token_column("returns", torch.tensor([0.0, 4.0, 9.0]))
    return batch.with_token_column("values", torch.tensor([0.5, 3.0, 0.0]))


def test_without_clipping():
    """Values 1 and 2: ½ (1² + 2²) = 2.5 over 2 tokens."""
    output = value_loss(torch.tensor([1.0, 2.0, 5.0]), minibatch(), clip_range=None)
    assert (output.total.item(), output.weight.item()) == (2.5, 2.0)
    assert "val/clipfrac_avg" not in output.metrics


def test_clipping_takes_the_worse_of_two():
    """0.2 is held at 0.3, which is worse: ½ 0.3² = 0.045. 5 is held at 3.2: ½ max(1, 0.64) = 0.5."""
    values = torch.tensor([0.2, 5.0, 5.0], requires_grad=True)
    output = value_loss(values, minibatch(), clip_range=0.2)
    assert output.total.item() == pytest.approx(0.545)
    clipped = output.metrics["val/clipfrac_avg"]
    assert (clipped.value / clipped.weight).item() == 0.5
    output.total.backward()
    # What is held has no gradient; the second is 5 - 4.
    assert values.grad.tolist() == [0.0, 1.0, 0.0]
    assert (output.metrics["val/mean"].value / output.metrics["val/mean"].weight).item() == pytest.approx(2.6)
