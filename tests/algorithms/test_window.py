"""The average over a window, with numbers worked out by hand; through a trainer see test_base.py."""

from types import SimpleNamespace

import torch

from lit_align.algorithms.window import average_gradients, average_of
from lit_align.outputs import LossOutput


def run(window, accumulated):
    weight = torch.nn.Parameter(torch.zeros(2))
    # Lightning has divided each micro-batch's sum by their number.
    weight.grad = torch.tensor([6.0, -3.0]) / accumulated
    trainer = SimpleNamespace(
        world_size=1, strategy=object(), accumulate_grad_batches=accumulated, global_rank=0
    )
    module = SimpleNamespace(trainer=trainer, tokens_seen=torch.zeros((), dtype=torch.long))
    average_gradients(module, window, torch.optim.SGD([weight], lr=1.0))
    return weight.grad.tolist(), int(module.tokens_seen)


def test_the_gradient_of_the_sum_becomes_that_of_the_average():
    """Weights 1 and 2 of 10 and 20 tokens: the sum's gradient (6, -3) over 3."""
    window = [torch.tensor([1.0, 10.0]), torch.tensor([2.0, 20.0])]
    assert run(window, 2) == ([2.0, -1.0], 30)


def test_a_window_without_weight_teaches_nothing():
    assert run([torch.tensor([0.0, 5.0])], 1) == ([0.0, 0.0], 5)
    nothing = average_of(LossOutput(torch.tensor(0.0), torch.tensor(0.0), {}))
    assert nothing.item() == 0.0
