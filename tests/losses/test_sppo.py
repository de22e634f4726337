"""Self-play preference optimisation with hard win rates."""

import pytest
import torch

from lit_align.losses.sppo import sppo_hard


def test_by_hand():
    """β = 1/2: targets 1 and -1. (3 - 1)² + (1 + 1)² = 8; at the targets 0; at the reference 2."""
    losses = sppo_hard(torch.tensor([3.0, 1.0, 0.0]), torch.tensor([1.0, -1.0, 0.0]), beta=0.5)
    assert losses.tolist() == [8.0, 0.0, 2.0]


def test_beta_must_be_positive():
    with pytest.raises(ValueError, match="sppo_hard: beta must be positive"):
        sppo_hard(torch.zeros(1), torch.zeros(1), beta=0.0)
