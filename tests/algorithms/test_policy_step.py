"""A minibatch as a policy loss sees it, and what is reported of it."""

import math
from dataclasses import replace

import pytest
import torch

from lit_align.algorithms.policy_step import (
    clip_metrics,
    decisions,
    policy_loss,
    step_metrics,
    without_truncated,
)
from lit_align.batches import Forest
from lit_align.losses.policy import PolicyObjective
from lit_align.outputs import Scores

LOG2 = torch.tensor(2.0).log()


def minibatch():
    """Completions of two tokens and one, of a policy that gave each half of what it gets now."""
    forest = Forest.from_lists([[1], [2]], [[[3, 4]], [[5]]])
    forest = replace(forest, completion_columns={"finished": torch.tensor([True, False])})
    forest = forest.with_token_column("old_logps", torch.full((3,), -2.0))
    return forest.with_token_column("advantages", torch.tensor([1.0, 1.0, -1.0]))


def scores(entropy=None):
    return Scores(logps=torch.full((3,), -2.0) + LOG2, entropy=entropy)


def value(metric):
    return (metric.value / metric.weight).item()


def test_an_older_policy_has_its_ratios():
    tokens = decisions(scores(), minibatch(), fresh=False)
    torch.testing.assert_close(tokens.ratios, torch.full((3,), 2.0))


def test_the_policy_that_sampled_has_a_ratio_of_exactly_one():
    tokens = decisions(scores(), minibatch(), fresh=True)
    assert torch.equal(tokens.ratios, torch.ones(3))


def test_a_replayed_completion_keeps_its_ratio():
    batch = minibatch()
    columns = {**batch.completion_columns, "replayed": torch.tensor([False, True])}
    tokens = decisions(scores(), replace(batch, completion_columns=columns), fresh=True)
    torch.testing.assert_close(tokens.ratios, torch.tensor([1.0, 1.0, 2.0]))


def test_the_loss_is_a_sum_and_its_weight():
    """Ratio 2: a good token is clipped to 1.2, a bad one counts in full: (-1.2 - 1.2 + 2) / 3."""
    objective = PolicyObjective("ppo", clip_range=0.2)
    batch = minibatch()
    output = policy_loss(objective, decisions(scores(), batch, fresh=False), batch)
    assert output.total.item() == pytest.approx(-0.4)
    assert output.weight.item() == 3.0


def test_weights_of_the_sampler_weigh_the_policy_term_alone():
    objective = PolicyObjective("ppo", clip_range=0.2)
    batch = minibatch().with_token_column("sampler_weights", torch.tensor([0.5, 0.0, 1.0]))
    tokens = decisions(scores(), batch, fresh=False)
    output = policy_loss(objective, tokens, batch, extra=torch.ones(3))
    assert output.total.item() == pytest.approx(-0.6 + 0.0 + 2.0 + 3.0)


def test_what_is_left_out_counts_all_the_same():
    objective = PolicyObjective("ppo", clip_range=0.2)
    batch = minibatch()
    kept = torch.tensor([True, False, True])
    output = policy_loss(objective, decisions(scores(), batch, fresh=False), batch, kept=kept)
    assert output.total.item() == pytest.approx(-1.2 + 2.0)
    assert output.weight.item() == 3.0


def test_reports():
    batch, entropy = minibatch(), torch.tensor([1.0, 2.0, 3.0])
    tokens = decisions(scores(entropy), batch, fresh=False)
    found = step_metrics(tokens, scores(entropy), batch, fresh=False)
    assert value(found["val/ratio"]) == pytest.approx(2.0)
    assert value(found["val/ratio_var"]) == pytest.approx(1.0)
    assert value(found["policy/approxkl_avg"]) == pytest.approx(0.5 * LOG2.item() ** 2)
    assert value(found["policy/entropy_avg"]) == pytest.approx(2.0)
    assert "ratio/first_mean" not in found
    clipping = clip_metrics(PolicyObjective("ppo", clip_range=0.2), tokens)
    assert value(clipping["clip_ratio/high_mean"]) == pytest.approx(2 / 3)
    assert value(clipping["clip_ratio/low_mean"]) == 0.0
    # The first completion is clipped whole, the second not at all.
    assert value(clipping["clip_ratio/high_max"]) == 1.0
    assert value(clipping["clip_ratio/low_min"]) == 0.0
    assert clip_metrics(PolicyObjective("a2c"), tokens) == {}


def test_what_cispo_caps():
    tokens = decisions(scores(), minibatch(), fresh=False)
    for cap, share in ((1.5, 2 / 3), (2.5, 0.0)):
        found = clip_metrics(PolicyObjective("cispo", ratio_cap=cap), tokens)
        assert found.keys() == {"cispo_clip_ratio"}
        # The third token has a ratio above the cap too, but is a bad one.
        assert value(found["cispo_clip_ratio"]) == pytest.approx(share)
    assert value(clip_metrics(PolicyObjective("cispo"), tokens)["cispo_clip_ratio"]) == 0.0


def test_what_vespo_weighs():
    """w = 4 with k 2, lambda 3, and w = 2 with k 3, lambda 2: a completion counts once."""
    batch = minibatch()
    tokens = decisions(scores(), batch, fresh=False)
    found = clip_metrics(PolicyObjective("vespo"), tokens)
    good, bad = 16 * math.exp(3 - 12), 8 * math.exp(2 - 4)
    assert value(found["vespo/phi_seq_mean"]) == pytest.approx((good + bad) / 2)
    unjudged = replace(batch, weights=torch.tensor([1.0, 1.0, 0.0]))
    found = clip_metrics(PolicyObjective("vespo"), decisions(scores(), unjudged, fresh=False))
    assert value(found["vespo/phi_seq_mean"]) == pytest.approx(good)


def test_weights_of_the_sampler_are_reported_where_tokens_count():
    batch = replace(minibatch(), weights=torch.tensor([1.0, 1.0, 0.0]))
    batch = batch.with_token_column("sampler_weights", torch.tensor([0.5, 1.5, 9.0]))
    tokens = decisions(scores(), batch, fresh=False)
    found = step_metrics(tokens, scores(), batch, fresh=False)
    name = "sampling/importance_sampling_ratio"
    assert [value(found[f"{name}/{end}"]) for end in ("min", "mean", "max")] == [0.5, 1.0, 1.5]
    nothing = replace(batch, weights=torch.zeros(3))
    found = step_metrics(decisions(scores(), nothing, fresh=False), scores(), nothing, fresh=False)
    assert [found[f"{name}/{end}"].weight.item() for end in ("min", "mean", "max")] == [0.0, 0.0, 0.0]


def test_the_gap_to_the_sampler_is_reported_while_it_is_arithmetic():
    batch = minibatch()
    tokens = decisions(scores(), batch, fresh=True)
    found = step_metrics(tokens, scores(), batch, fresh=True)
    assert value(found["ratio/first_mean"]) == pytest.approx(2.0)
    assert value(found["sampling/sampling_logp_difference/mean"]) == pytest.approx(LOG2.item())
    assert found["sampling/sampling_logp_difference/max"].value.item() == pytest.approx(LOG2.item())


def test_what_is_replayed_has_no_part_in_the_gap_to_the_sampler():
    """The replayed completion moved by log 8, which is no arithmetic; the rest by log 2."""
    names = ("ratio/first_mean", "sampling/sampling_logp_difference/mean")
    batch = minibatch().with_token_column("old_logps", torch.tensor([-2.0, -2.0, -2.0 - 2 * LOG2.item()]))
    for replayed in ([False, True], [True, True]):
        columns = {**batch.completion_columns, "replayed": torch.tensor(replayed)}
        part = replace(batch, completion_columns=columns)
        found = step_metrics(decisions(scores(), part, fresh=True), scores(), part, fresh=True)
        largest = found["sampling/sampling_logp_difference/max"]
        if all(replayed):
            assert [found[name].weight.item() for name in names] == [0.0, 0.0]
            assert largest.weight.item() == 0.0
        else:
            assert [value(found[name]) for name in names] == pytest.approx([2.0, LOG2.item()])
            assert largest.value.item() == pytest.approx(LOG2.item())
            assert largest.weight.item() == 1.0


def test_completions_that_were_cut_off_lose_their_weight():
    assert without_truncated(minibatch()).weights.tolist() == [1.0, 1.0, 0.0]
