"""Advantages of completions among those of their prompt."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_align.functional import group_advantages as g
from lit_align.functional.segments import segment_sum

NAN = float("nan")
GROUP = torch.tensor([0, 0, 1, 1, 1])
ON_GROUPS = (g.group_mean, g.group_normalised, g.leave_one_out)
ON_BATCHES = (g.batch_normalised, g.leave_one_out_normalised, g.reinforce_pp_baseline)
groups_of = st.lists(
    st.lists(st.one_of(st.just(NAN), st.integers(-9, 9).map(float)), max_size=5), min_size=1, max_size=4
)


def float64(values):
    return torch.tensor(values, dtype=torch.float64)


def one_process(sums):
    return sums


def every(rewards, group, groups):
    """All estimators, each with what it takes."""
    for function in ON_GROUPS:
        yield function, function(rewards, group, groups)
    for function in ON_BATCHES:
        yield function, function(rewards, group, groups, one_process)
    table, weights = rewards[:, None], torch.ones(1)
    yield g.gdpo, g.gdpo(table, weights, group, groups, one_process)


def test_by_hand():
    """Groups (1, 3) and (0, 0, 6): means 2 and 2, deviations √2 and √12; of the batch, 2 and √(26/4)."""
    rewards = float64([1.0, 3.0, 0.0, 0.0, 6.0])
    deviations = float64([-1.0, 1.0, -2.0, -2.0, 4.0])
    torch.testing.assert_close(g.group_mean(rewards, GROUP, 2), deviations)
    stds = float64([math.sqrt(2)] * 2 + [math.sqrt(12)] * 3)
    torch.testing.assert_close(g.group_normalised(rewards, GROUP, 2), deviations / (stds + 1e-4))
    torch.testing.assert_close(
        g.batch_normalised(rewards, GROUP, 2, one_process), deviations / (math.sqrt(6.5) + 1e-4)
    )
    # The others of the group: 3; 1; 3; 3; 0.
    torch.testing.assert_close(g.leave_one_out(rewards, GROUP, 2), float64([-2.0, 2.0, -3.0, -3.0, 6.0]))
    # Deviations have mean 0 and squares 1 + 1 + 4 + 4 + 16 = 26 over 4.
    torch.testing.assert_close(
        g.reinforce_pp_baseline(rewards, GROUP, 2, one_process), deviations / math.sqrt(6.5)
    )


def test_gdpo_tells_rewards_apart_that_a_sum_does_not():
    """(1, 0), (0, 1) and (0, 0): the sum cannot tell the first two apart. The second weighs 2."""
    table = float64([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    group = torch.zeros(3).long()
    found = g.gdpo(table, torch.tensor([1.0, 2.0]), group, 1, one_process)
    # Each column: mean ⅓, std √⅓, so z = (2, -1, -1)/√3: A = (2 - 2, -1 + 4, -1 - 2)/√3 = (0, √3, -√3).
    torch.testing.assert_close(found, float64([0.0, 1.0, -1.0]), rtol=1e-3, atol=1e-9)
    summed = g.group_normalised(g.weighted_rewards(table, torch.ones(2)), group, 1)
    assert summed[0] == summed[1]


def test_unscored_completions_are_in_no_mean():
    """(1, NaN, 3) is (1, 3) and a 0."""
    with_hole, without = float64([1.0, NAN, 3.0]), float64([1.0, 3.0])
    kept = torch.tensor([0, 2])
    pairs = zip(
        every(with_hole, torch.zeros(3).long(), 1), every(without, torch.zeros(2).long(), 1), strict=True
    )
    for (function, found), (_, expected) in pairs:
        assert found[1] == 0, function
        torch.testing.assert_close(found[kept], expected)


@pytest.mark.parametrize("rewards", [[NAN, NAN], [2.0, NAN], [2.0, 2.0], [2.0], []])
def test_nothing_to_compare_is_no_advantage(rewards):
    rewards = float64(rewards)
    for function, found in every(rewards, torch.zeros(len(rewards)).long(), 1):
        assert found.tolist() == [0.0] * len(rewards), function


@given(groups_of)
def test_groups_do_not_see_each_other(lists):
    rewards = float64([r for one in lists for r in one])
    group = torch.tensor([i for i, one in enumerate(lists) for _ in one], dtype=torch.long)
    for function in ON_GROUPS:
        together = function(rewards, group, len(lists))
        alone = [function(float64(one), torch.zeros(len(one)).long(), 1) for one in lists]
        torch.testing.assert_close(together, torch.cat(alone), rtol=1e-9, atol=1e-9)


@given(groups_of)
def test_what_a_group_gains_it_loses(lists):
    """Within a group they sum to 0; and a constant on all rewards changes nothing."""
    rewards = float64([r for one in lists for r in one])
    group = torch.tensor([i for i, one in enumerate(lists) for _ in one], dtype=torch.long)
    for function, found in every(rewards, group, len(lists)):
        sums = segment_sum(found, group, len(lists))
        torch.testing.assert_close(sums, torch.zeros_like(sums), rtol=0, atol=1e-6, msg=str(function))
    for (_, found), (_, shifted) in zip(
        every(rewards, group, len(lists)), every(rewards + 3, group, len(lists)), strict=True
    ):
        torch.testing.assert_close(found, shifted, rtol=1e-6, atol=1e-6)


@given(groups_of, groups_of)
def test_processes_meet_in_the_sums(first, second):
    """Batch statistics of two processes, each with its own groups, are those of one with all."""
    lists = first + second
    rewards = [float64([r for one in part for r in one]) for part in (first, second)]
    group = [
        torch.tensor([i for i, one in enumerate(part) for _ in one], dtype=torch.long)
        for part in (first, second)
    ]
    both = torch.cat((group[0], group[1] + len(first)))
    for function in ON_BATCHES:
        seen = []

        def record(sums, seen=seen):
            seen.append(sums)
            return sums

        for part in (0, 1):
            function(rewards[part], group[part], len((first, second)[part]), record)
        total = sum(seen)
        parts = [
            function(rewards[p], group[p], len((first, second)[p]), lambda sums, total=total: total)
            for p in (0, 1)
        ]
        whole = function(torch.cat(rewards), both, len(lists), one_process)
        torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-6, atol=1e-6)


def test_float32_stays_float32():
    rewards = torch.tensor([1.0, 2.0, 0.5, 3.0, 1.0])
    for function, found in every(rewards, GROUP, 2):
        assert found.dtype == torch.float32, function
