"""The policy gradient."""

import torch

from lit_align.losses.a2c import policy_gradient
from lit_align.losses.ppo import clipped_surrogate


def test_by_hand():
    found = policy_gradient(torch.tensor([-2.0, -3.0]), torch.tensor([0.5, -1.0]))
    assert found.tolist() == [1.0, -3.0]


def test_advantages_are_constants():
    logps, advantages = torch.zeros(2, requires_grad=True), torch.ones(2, requires_grad=True)
    policy_gradient(logps, advantages).sum().backward()
    assert logps.grad.tolist() == [-1.0, -1.0]
    assert advantages.grad is None


def test_its_gradient_is_that_of_ppo_at_ratio_one():
    logps = torch.tensor([-1.0, -2.0], requires_grad=True)
    advantages = torch.tensor([3.0, -4.0])
    (ours,) = torch.autograd.grad(policy_gradient(logps, advantages).sum(), logps)
    ratios = (logps - logps.detach()).exp()
    (ppo,) = torch.autograd.grad(clipped_surrogate(ratios, advantages).sum(), logps)
    assert torch.equal(ours, ppo)


def test_it_climbs_the_expected_reward():
    """Over all tokens of a vocabulary, its expected gradient is that of -E[r], with any baseline."""
    torch.manual_seed(0)
    logits, rewards = torch.randn(2, 6, dtype=torch.float64)
    logits.requires_grad_()
    logps = torch.log_softmax(logits, -1)
    (exact,) = torch.autograd.grad(-(logps.exp() * rewards).sum(), logits, retain_graph=True)
    for baseline in (0.0, 7.0):
        estimate = (logps.detach().exp() * policy_gradient(logps, rewards - baseline)).sum()
        (found,) = torch.autograd.grad(estimate, logits, retain_graph=True)
        torch.testing.assert_close(found, exact)
