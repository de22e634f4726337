"""WPO's weights."""

import math

import pytest
import torch

from lit_align.losses.wpo import completion_weights, pair_weights


def test_by_hand():
    """Tokens of probability ½ and ¼ where Σ p² is ½: exp((0 - log 2) / 2) = 0.707107. One token of ½ where
    Σ p² is ¼: exp(log 2) = 2. The pair: 1.414214.
    """
    logps = torch.tensor([0.5, 0.25, 0.5]).log()
    log_sum_p2 = torch.tensor([0.5, 0.5, 0.25]).log()
    weights = completion_weights(logps, log_sum_p2, torch.ones(3), torch.tensor([0, 0, 1]), 2)
    torch.testing.assert_close(weights, torch.tensor([math.sqrt(0.5), 2.0]))
    torch.testing.assert_close(pair_weights(weights[:1], weights[1:]), torch.tensor([math.sqrt(2)]))


def test_context_does_not_count_and_an_empty_completion_weighs_one():
    logps, log_sum_p2 = torch.tensor([0.5, 1e-9]).log(), torch.tensor([0.25, 0.25]).log()
    weights = completion_weights(logps, log_sum_p2, torch.tensor([1.0, 0.0]), torch.tensor([0, 0]), 2)
    assert weights.tolist() == pytest.approx([2.0, 1.0])


def test_a_weight_is_not_a_goal():
    logps = torch.tensor([-1.0], requires_grad=True)
    assert not completion_weights(logps, logps, torch.ones(1), torch.tensor([0]), 1).requires_grad


def test_sampling_from_a_uniform_policy_weighs_one():
    """p = 1/V and Σ p² = 1/V: whatever the policy draws, the weight is 1."""
    uniform = torch.full((7,), -math.log(50))
    weights = completion_weights(uniform, uniform, torch.ones(7), torch.tensor([0] * 3 + [1] * 4), 2)
    torch.testing.assert_close(weights, torch.ones(2))
