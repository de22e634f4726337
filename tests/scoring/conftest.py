"""A tiny policy and a batch, for tests of references."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from lit_align.batches import Forest
from lit_align.models.build import build_causal_lm
from lit_align.models.config import LoraConfig, ModelConfig
from lit_align.scoring.policy import Policy

ARCHITECTURE: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    # Dropout that would show, were a reference scored in train mode.
    "attention_dropout": 0.5,
}


@pytest.fixture
def make_policy() -> Callable[..., Policy]:
    """``make_policy()`` is a policy in train mode; ``make_policy(r=4)`` one with LoRA."""

    def make(**lora: Any) -> Policy:
        adapters = LoraConfig(**lora) if lora else None
        return Policy(build_causal_lm(ModelConfig(architecture=ARCHITECTURE, lora=adapters))).train()

    return make


@pytest.fixture
def pairs() -> Forest:
    """Three preference pairs, one with an empty prompt, one token that weighs nothing."""
    return Forest.from_lists(
        [[5, 6, 7], [8], []],
        [[[9, 10, 2], [11, 2]], [[12, 13, 14, 2], [15, 2]], [[16, 17, 2], [18, 2]]],
        weights=[[[1, 1, 1], [1, 1]], [[1, 0, 1, 1], [1, 1]], [[1, 1, 1], [1, 1]]],
    )


@pytest.fixture
def nudge() -> Callable[[torch.nn.Module], None]:
    """Move every trainable weight, as a training step would."""

    def move(module: torch.nn.Module, amount: float = 0.1) -> None:
        generator = torch.Generator().manual_seed(0)
        for p in module.parameters():
            if p.requires_grad:
                p.data += amount * torch.randn(p.shape, generator=generator)

    return move


@pytest.fixture
def present() -> Callable[[Policy, Forest], torch.Tensor]:
    """Log-probs of the policy as it is now, without dropout."""

    def score(policy: Policy, batch: Forest) -> torch.Tensor:
        policy.eval()
        with torch.no_grad():
            logps = policy(batch).logps
        policy.train()
        return logps

    return score
