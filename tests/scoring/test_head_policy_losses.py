"""Every policy loss, with a critic's loss and an entropy bonus: the fused head against plain autograd."""

import pytest
import torch

from lit_align.batches import Forest
from lit_align.losses.policy import POLICY_LOSSES, Decisions, PolicyObjective
from lit_align.losses.ppo import clipped_squared_error
from lit_align.outputs import LossOutput, Scores
from lit_align.scoring import head_work as fused
from lit_align.scoring.blocks import blocks
from lit_align.scoring.head import Head, head_loss

VOCABULARY, WIDTH = 29, 8
#: What has no default of its own.
OPTIONS = {name: {} for name in POLICY_LOSSES}
for _name in ("ppo", "reinforce_pp", "rloo", "grpo", "dr_grpo", "dapo", "bnpo"):
    OPTIONS[_name] = {"clip_range": 0.2}
ENTROPY = frozenset({"entropy"})


def rollout(dtype: torch.dtype) -> Forest:
    """Groups of three completions with everything that a step wants of them."""
    generator = torch.Generator().manual_seed(0)

    def ids(low: int, high: int) -> list[int]:
        length = int(torch.randint(low, high, (1,), generator=generator))
        return torch.randint(0, VOCABULARY, (length,), generator=generator).tolist()

    batch = Forest.from_lists(
        [ids(1, 4) for _ in range(5)], [[ids(1, 9) for _ in range(3)] for _ in range(5)]
    )
    size = len(batch.completion_ids)
    for name, scale, shift in (
        ("old_logps", 1, -3.4),
        ("advantages", 1, 0),
        ("returns", 2, 0),
        ("old_values", 1, 0),
    ):
        column = scale * torch.randn(size, generator=generator, dtype=torch.float64) + shift
        batch = batch.with_token_column(name, column.to(dtype))
    return batch


def loss_of(objective: PolicyObjective):
    def loss(scores: Scores, batch: Forest) -> LossOutput:
        column = batch.token_columns
        tokens = Decisions(
            logps=scores.logps,
            old_logps=column["old_logps"],
            advantages=column["advantages"],
            mask=batch.weights,
            sequence=batch.sequence,
            completions=batch.num_completions,
        )
        weights, total = objective.token_weights(tokens)
        value = clipped_squared_error(scores.values, column["old_values"], column["returns"], clip_range=0.2)
        each = objective(tokens) + 0.1 * value - 0.01 * scores.entropy
        return LossOutput((each * weights).sum(), total, {})

    return loss


def plain(hidden, weight, values, batch, loss):
    log_probs = (hidden @ weight.T / 0.8).log_softmax(-1)
    logps = log_probs.gather(1, batch.completion_ids[:, None])[:, 0]
    entropy = -(log_probs.exp() * log_probs).sum(-1)
    return loss(Scores(logps=logps, entropy=entropy, values=values), batch)


@pytest.mark.parametrize("name", sorted(POLICY_LOSSES))
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-6)])
@pytest.mark.parametrize("cut", ["many blocks", "two passes"])
def test_fused_equals_plain(name, dtype, tolerance, cut, monkeypatch):
    if cut == "two passes":
        monkeypatch.setattr(fused, "LARGEST_BLOCK", 1)
        monkeypatch.setattr(fused, "chunk_rows", lambda vocabulary: 3)
    batch = rollout(dtype)
    torch.manual_seed(1)
    size = len(batch.completion_ids)
    hidden = (0.5 * torch.randn(size, WIDTH, dtype=dtype)).requires_grad_()
    weight = (0.5 * torch.randn(VOCABULARY, WIDTH, dtype=dtype)).requires_grad_()
    values = torch.randn(size, dtype=dtype, requires_grad=True)
    length = 9 if POLICY_LOSSES[name].normaliser == "constant" else None
    loss = loss_of(PolicyObjective(name, length=length, **OPTIONS[name]))
    parts = blocks(batch, torch.arange(size), 20)
    assert len(parts) > 2
    ours = head_loss(hidden, Head(weight, scale=1 / 0.8), batch.completion_ids, parts, loss, ENTROPY, values)
    theirs = plain(hidden, weight, values, batch, loss)
    torch.testing.assert_close(ours.weight, theirs.weight)
    torch.testing.assert_close(
        ours.total, theirs.total, rtol=tolerance, atol=tolerance * abs(theirs.total.item())
    )
    inputs = (hidden, weight, values)
    found, expected = (torch.autograd.grad(output.total, inputs) for output in (ours, theirs))
    for got, exact in zip(found, expected, strict=True):
        # Relative to the largest, which is what float32 rounds against in a sum.
        largest = max(1.0, float(exact.abs().max()))
        torch.testing.assert_close(got, exact, rtol=0, atol=tolerance * largest)
