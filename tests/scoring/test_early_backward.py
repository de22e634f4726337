"""Gradients that are made at once are those of the ordinary graph."""

import weakref

import pytest
import torch
from torch import nn

from lit_align.outputs import LossOutput
from lit_align.scoring.early_backward import early_backward


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).double()


X = torch.linspace(-1, 1, 12, dtype=torch.float64).view(4, 3)


def loss(net):
    return LossOutput((net(X) ** 2).sum(), torch.tensor(4.0), {})


def test_gradients_add_to_those_of_the_rest(net):
    """total = 2 * early + something of the same parameters: one backward pass for all."""
    found = []
    for early in (False, True):
        net.zero_grad()
        output = early_backward(lambda: loss(net), list(net.parameters())) if early else loss(net)
        (2 * output.total + net[0].weight.sum()).backward()
        found.append([output.total.detach(), *(p.grad.clone() for p in net.parameters())])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


class Saved:
    """What a graph keeps a tensor in."""

    def __init__(self, tensor):
        self.tensor = tensor


def test_activations_are_gone_before_the_backward_pass(net):
    """Activations have four rows here, and no parameter has."""
    alive = []
    for early in (False, True):
        kept = []

        def pack(tensor, kept=kept):
            saved = Saved(tensor)
            kept.append(weakref.ref(saved))
            return saved

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.tensor):
            output = early_backward(lambda: loss(net), list(net.parameters())) if early else loss(net)
        held = [saved for ref in kept if (saved := ref()) is not None]
        alive.append(sum(len(saved.tensor) == 4 for saved in held if saved.tensor.ndim))
        assert output.total.requires_grad
    assert alive[0] >= 3
    assert alive[1] == 0


def test_a_parameter_without_influence_gets_none(net):
    spare = nn.Parameter(torch.zeros(2))
    early_backward(lambda: loss(net), [*net.parameters(), spare]).total.backward()
    assert spare.grad is None
    assert net[0].weight.grad is not None


def test_a_loss_without_gradient(net):
    output = early_backward(lambda: LossOutput(torch.tensor(3.0), torch.tensor(1.0), {}), [*net.parameters()])
    output.total.backward()
    assert net[0].weight.grad is None


def test_without_gradients_nothing_is_made(net):
    with torch.no_grad():
        assert not early_backward(lambda: loss(net), list(net.parameters())).total.requires_grad


def test_a_second_backward_is_refused(net):
    total = early_backward(lambda: loss(net), list(net.parameters())).total
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()


def test_half_precision_keeps_its_graph(net):
    """Its gradients may vanish before the scaler's factor reaches them."""
    half = nn.Linear(3, 1).half()
    run = lambda: LossOutput(half(X.half()).sum(), torch.tensor(1.0), {})  # noqa: E731
    assert "Early" not in type(early_backward(run, list(half.parameters())).total.grad_fn).__name__
    assert "Early" in type(early_backward(lambda: loss(net), [*net.parameters()]).total.grad_fn).__name__


def test_under_autocast_the_backward_pass_is_the_usual_one(net):
    """Which runs outside: a product of its own that was made in float32 stays in float32."""
    net, weight, found = net.float(), nn.Parameter(torch.eye(5)), []

    def mixed():
        hidden = net[1](net[0](X.float()))
        with torch.autocast("cpu", enabled=False):
            wide = hidden.float() @ weight
        return LossOutput((net[2](wide) ** 2).sum(), torch.tensor(4.0), {})

    parameters = [*net.parameters(), weight]
    for early in (False, True):
        for parameter in parameters:
            parameter.grad = None
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = early_backward(mixed, parameters) if early else mixed()
        output.total.backward()
        found.append([p.grad for p in parameters])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*found, strict=True))
