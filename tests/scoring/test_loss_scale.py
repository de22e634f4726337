"""Gradients that are made with a loss in float16 are those of the scaled loss, as autograd's are."""

import pytest
import torch

from lit_align.batches import Forest
from lit_align.models.build import build_causal_lm
from lit_align.models.config import ModelConfig
from lit_align.models.value_head import ValueHeadConfig, build_value_head
from lit_align.outputs import LossOutput
from lit_align.scoring.critic import ActorCritic
from lit_align.scoring.loss_scale import loss_scale, scaled_losses
from lit_align.scoring.policy import Policy

ARCHITECTURE = {
    "model_type": "llama",
    "vocab_size": 4096,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
SCALE = 2.0**16


@pytest.fixture(scope="module")
def policy() -> Policy:
    return Policy(build_causal_lm(ModelConfig(architecture=ARCHITECTURE, seed=1)))


@pytest.fixture(scope="module")
def batch() -> Forest:
    generator = torch.Generator().manual_seed(0)

    def ids(length: int) -> list[int]:
        return torch.randint(0, 4096, (length,), generator=generator).tolist()

    return Forest.from_lists([ids(5) for _ in range(4)], [[ids(60)] for _ in range(4)])


def gradients(policy: Policy, batch: Forest, size: float, *, half: bool, scale: float = 1.0) -> dict:
    """Of ``size`` times the sum of log-probs, whose derivatives by each log-prob are ``size``."""

    def loss(scores, part):
        return LossOutput(-size * (scores.logps * part.weights).sum(), part.weights.sum(), {})

    policy.zero_grad()
    with torch.autocast("cpu", dtype=torch.float16, enabled=half):
        output = policy(batch, loss=loss)
    (output.total * scale).backward()
    return {n: p.grad.double() / scale for n, p in policy.named_parameters()}


def worst(found: dict, exact: dict) -> float:
    """The largest relative error of a parameter's gradient."""
    return max(float((found[n] - exact[n]).norm() / exact[n].norm()) for n in exact)


def test_small_gradients_survive_a_scale_that_is_known(policy, batch):
    exact = gradients(policy, batch, 1e-5, half=False)
    # Of a scale that comes afterwards the head's gradients know nothing: they have become 0 before.
    assert worst(gradients(policy, batch, 1e-5, half=True, scale=SCALE), exact) > 0.05
    with scaled_losses(SCALE):
        found = gradients(policy, batch, 1e-5, half=True, scale=SCALE)
    assert worst(found, exact) < 5e-3


def test_a_scale_that_float16_cannot_hold_makes_nothing_infinite(policy, batch):
    """65536 is above the largest number of float16; its product with a small gradient is not."""
    found = gradients(policy, batch, 1e-5, half=True, scale=SCALE)
    assert all(g.isfinite().all() for g in found.values())


def test_a_scale_that_is_too_large_is_seen_by_the_scaler(policy, batch):
    with scaled_losses(2.0**30):
        found = gradients(policy, batch, 1.0, half=True, scale=2.0**30)
    assert not all(g.isfinite().all() for g in found.values())


@pytest.mark.parametrize("accumulated", [1, 4])
def test_what_comes_out_is_what_was_asked_for(policy, batch, accumulated):
    """In full precision the block changes nothing, also where the loss is divided afterwards."""
    exact = gradients(policy, batch, 1.0, half=False, scale=1 / accumulated)
    with scaled_losses(8.0):
        found = gradients(policy, batch, 1.0, half=False, scale=1 / accumulated)
        assert loss_scale() == 8.0
    assert loss_scale() == 1.0
    for name, grad in exact.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-5, atol=1e-7)


def test_values_on_the_same_trunk_are_scaled_too():
    model = build_causal_lm(ModelConfig(architecture=ARCHITECTURE, seed=1))
    both = ActorCritic(model, build_value_head(model, ValueHeadConfig("normal", std=0.3)))
    batch = Forest.from_lists([[5, 6]], [[[7, 8, 2], [9, 10]]])

    def loss(scores, part):
        return LossOutput((scores.values**2).sum() - scores.logps.sum(), part.weights.sum(), {})

    def run():
        both.zero_grad()
        both(batch, loss=loss).total.backward()
        return {n: p.grad.clone() for n, p in both.named_parameters()}

    exact = run()
    with scaled_losses(8.0):
        found = run()
    for name, grad in exact.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-5, atol=1e-7)
