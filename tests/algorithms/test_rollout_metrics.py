"""Lengths and rewards of a rollout."""

from dataclasses import replace

import pytest
import torch

from lit_align.algorithms.metrics import average
from lit_align.algorithms.rollout_metrics import completion_metrics, judged, reward_metrics
from lit_align.batches import Forest
from tests.algorithms.on_policy_runs import rewarded


def rollout():
    forest = Forest.from_lists([[1], [2]], [[[3, 4], [5]], [[6] * 4, [7] * 5]])
    return replace(forest, completion_columns={"finished": torch.tensor([True, True, False, True])})


def value(metric):
    return (metric.value / metric.weight).item()


def test_lengths():
    found = {name: value(metric) for name, metric in completion_metrics(rollout()).items()}
    assert found == pytest.approx(
        {
            "completions/mean_length": 3.0,
            "completions/min_length": 1.0,
            "completions/max_length": 5.0,
            "completions/clipped_ratio": 0.25,
            "completions/mean_terminated_length": 8 / 3,
            "completions/min_terminated_length": 1.0,
            "completions/max_terminated_length": 5.0,
        }
    )


def test_a_rollout_without_an_end_has_no_terminated_length():
    forest = replace(rollout(), completion_columns={"finished": torch.zeros(4, dtype=torch.bool)})
    found = completion_metrics(forest)
    names = {f"completions/{which}_terminated_length" for which in ("mean", "min", "max")}
    assert {name for name, metric in found.items() if metric.weight.item() == 0} == names
    assert not names & average([found], torch.device("cpu")).keys()
    assert found["completions/clipped_ratio"].value.item() == 4.0


def test_rewards_and_their_spread():
    table = rewarded([[1.0], [0.0], [2.0], [None]])
    found = reward_metrics(rollout(), table, lambda sums: sums)
    assert value(found["reward"]) == pytest.approx(1.0)
    assert value(found["reward_std"]) == pytest.approx(1.0)
    # The second group has one reward, and so no spread.
    assert value(found["frac_reward_zero_std"]) == pytest.approx(0.5)


def test_the_spread_is_that_of_all_processes():
    table = rewarded([[1.0], [0.0], [2.0], [None]])
    others = torch.tensor([1.0, 5.0, 25.0], dtype=torch.float64)
    found = reward_metrics(rollout(), table, lambda sums: sums + others)
    assert value(found["rewards/r0/std"]) == value(found["reward_std"])
    assert value(found["reward_std"]) == pytest.approx(torch.tensor([1.0, 0.0, 2.0, 5.0]).std().item())


def test_single_completions_are_no_groups():
    forest = Forest.from_lists([[1], [2]], [[[3]], [[4]]])
    assert "frac_reward_zero_std" not in reward_metrics(forest, rewarded([[1.0], [0.0]]), lambda s: s)


def test_a_completion_is_judged_where_one_of_its_tokens_counts():
    weights = torch.tensor([1.0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 1])
    assert judged(replace(rollout(), weights=weights)).tolist() == [1.0, 0.0, 1.0, 1.0]
