"""Groups without spread: sampled until there are others, or replaced by kept ones."""

from dataclasses import replace

import pytest
import torch

from lit_align.algorithms.collection import generate, judge, reference_logps
from lit_align.algorithms.group_sampling import (
    DynamicSampling,
    ReplayBuffer,
    advantage_size,
    has_spread,
)
from lit_align.algorithms.grpo import GRPO
from lit_align.batches import Forest
from lit_align.rollouts.sampling import Sampling
from lit_align.scoring.references import EMA, FrozenCopy
from tests.algorithms.on_policy_runs import fit, golden_policy, no_reward, rewarded


def rollout(advantages, first_row=0):
    """Groups of two one-token completions with given advantages."""
    prompts = len(advantages) // 2
    ids = [[first_row + p + 1] for p in range(prompts)]
    forest = Forest.from_lists(ids, [[[7], [8]]] * prompts, rows=range(first_row, first_row + prompts))
    forest = replace(forest, completion_columns={"finished": torch.ones(2 * prompts, dtype=torch.bool)})
    forest = forest.with_token_column("old_logps", -torch.arange(1.0, 2 * prompts + 1))
    return forest.with_token_column("advantages", torch.tensor(advantages))


def test_spread_is_told_per_group():
    forest = rollout([0.0] * 6)
    table = rewarded([[1.0], [1.0], [0.0], [1.0], [None], [1.0]])
    assert has_spread(forest, table).tolist() == [False, True, False]


def test_the_size_of_advantages_is_a_mean_over_tokens_that_count():
    forest = rollout([1.0, -3.0, 0.0, 0.0])
    assert advantage_size(forest).tolist() == [2.0, 0.0]
    masked = replace(forest, weights=torch.tensor([0.0, 1.0, 1.0, 1.0]))
    assert advantage_size(masked).tolist() == [3.0, 0.0]


def test_kept_groups_take_the_place_of_flat_ones():
    replay = ReplayBuffer(2)
    first = replay.exchange(rollout([1.0, -1.0, 0.0, 0.0]), seed=0, index=0)
    # Nothing was kept yet, so the flat group stays.
    assert first.rows == (0, 1)
    assert not first.completion_columns["replayed"].any()
    second = replay.exchange(rollout([0.0, 0.0, 2.0, -2.0], first_row=10), seed=0, index=1)
    assert second.rows == (0, 11)
    assert second.completion_columns["replayed"].tolist() == [True, True, False, False]
    # With the log-probs of the policy that sampled them.
    assert second.token_columns["old_logps"].tolist() == [-1.0, -2.0, -3.0, -4.0]
    assert [group.rows for group in replay.groups] == [(0,), (11,)]


def test_the_best_groups_are_kept():
    replay = ReplayBuffer(2)
    replay.exchange(rollout([1.0, -1.0, 3.0, -3.0, 2.0, -2.0]), seed=0, index=0)
    assert [group.rows for group in replay.groups] == [(1,), (2,)]


def test_a_replay_buffer_goes_through_a_checkpoint():
    replay, other = ReplayBuffer(3), ReplayBuffer(3)
    replay.exchange(rollout([1.0, -1.0, 3.0, -3.0]), seed=0, index=0)
    other.load(replay.state())
    drawn = [one.exchange(rollout([0.0, 0.0], 5), seed=1, index=7) for one in (replay, other)]
    assert drawn[0].rows == drawn[1].rows != (5,)


def test_replayed_completions_keep_their_ratios_in_the_first_minibatch(golden_models):
    module = GRPO(golden_policy(golden_models), rewards=no_reward, completions=2, replay=4, loss="grpo")
    module.configure_model()
    for index, table in enumerate(([[1.0], [0.0]], [[1.0], [1.0]])):
        forest = rollout([0.0, 0.0], first_row=index)
        experience, _ = judge(module, replace(forest, token_columns={
            "old_logps": forest.token_columns["old_logps"]}), rewarded(table))  # fmt: skip
        module.fill(experience, [index])
    assert module.buffer.experience.completion_columns["replayed"].all()
    metrics = module._run(module.buffer.take(), logging=True).metrics
    # The old log-probs of the replayed group are -1 and -2, not the policy's own.
    ratio = metrics["val/ratio"]
    assert (ratio.value / ratio.weight).item() != pytest.approx(1.0, abs=1e-3)


def even(prompt_ids, **rest):
    """A reward with spread for prompts of even length alone."""
    return [float(i % 2) if len(ids) % 2 == 0 else 1.0 for i, ids in enumerate(prompt_ids)]


def test_the_pool_is_asked_until_groups_have_spread(tmp_path):
    module = GRPO("lit-align/tiny", rewards=even, sampling=Sampling(4), completions=2, dynamic_sampling=3)
    rows = []

    def look(experience, source):
        rows.append((experience, source))
        return GRPO.fill(module, experience, source)

    module.fill = look
    _, steps = fit(module, tmp_path, steps=1, batch_size=12)
    experience, source = rows[0]
    assert experience.num_prompts == 3
    assert len(source) == 12
    assert (advantage_size(experience) > 0).all()
    assert steps[0]["dynamic_sampling/filled"] == 1.0
    assert all(length % 2 == 0 for length in experience.prompt_lengths)


def test_reports_are_of_everything_that_was_sampled(tmp_path):
    module = GRPO("lit-align/tiny", rewards=even, sampling=Sampling(4), completions=2, dynamic_sampling=3)
    _, steps = fit(module, tmp_path, steps=1, batch_size=12)
    # Flat groups have rewards of 1, the others of 1/2 on average: of the kept ones it would be 1/2.
    assert 0.5 < steps[0]["reward"] < 1
    assert steps[0]["reward"] == pytest.approx(steps[0]["rewards/even/mean"])
    assert steps[0]["frac_reward_zero_std"] == pytest.approx(2 * steps[0]["reward"] - 1)


def test_a_row_that_comes_twice_is_answered_twice():
    """Whether both are asked at once or one after the other."""
    module = GRPO("lit-align/tiny", rewards=no_reward, completions=2, sampling=Sampling(8))
    module.configure_model()
    one = Forest.from_lists([[5, 6]], [[]], rows=[3])
    both = generate(module, Forest.from_lists([[5, 6]] * 2, [[]] * 2, rows=[3, 3]), "rollout 0")
    first = generate(module, one, "rollout 0")
    second = generate(module, one, "rollout 0", before=[3])
    assert first.completion_ids.tolist() != second.completion_ids.tolist()
    assert torch.equal(both.completion_ids, torch.cat((first.completion_ids, second.completion_ids)))


def test_a_reference_that_moved_is_asked_again(golden_models):
    options = {"rewards": no_reward, "completions": 2, "replay": 4, "beta": 0.1}
    module = GRPO(golden_policy(golden_models), reference=EMA(), **options)
    module.configure_model()

    def judged(index, table):
        forest = rollout([0.0, 0.0], first_row=index)
        columns = {"old_logps": forest.token_columns["old_logps"]}
        return judge(module, replace(forest, token_columns=columns), rewarded(table))[0]

    old = judged(0, [[1.0], [0.0]])
    with torch.no_grad():
        for weight in module.reference.parameters():
            weight.mul_(1.5)
    replayed = judged(1, [[1.0], [1.0]])
    assert replayed.rows == old.rows
    assert replayed.completion_columns["replayed"].all()
    now, then = (one.token_columns["reference_logps"] for one in (replayed, old))
    torch.testing.assert_close(now, reference_logps(module, replayed))
    assert not torch.allclose(now, then, atol=1e-3)


@pytest.mark.parametrize("moves", [False, True])
def test_a_reference_that_stays_is_asked_once(golden_models, monkeypatch, moves):
    """Unless a callback moves it, and says so."""
    options = {"rewards": no_reward, "completions": 2, "replay": 4, "beta": 0.1}
    module = GRPO(golden_policy(golden_models), reference=FrozenCopy(), **options)
    module.configure_model()
    module.reference.moves = moves or module.reference.moves
    asked = []
    score = module.reference.score
    monkeypatch.setattr(module.reference, "score", lambda *a, **k: asked.append(1) or score(*a, **k))
    for index, table in enumerate(([[1.0], [0.0]], [[1.0], [1.0]])):
        forest = rollout([0.0, 0.0], first_row=index)
        columns = {"old_logps": forest.token_columns["old_logps"]}
        judged = judge(module, replace(forest, token_columns=columns), rewarded(table))[0]
    assert judged.completion_columns["replayed"].all()
    assert len(asked) == (3 if moves else 2)


def test_a_dry_pool_is_filled_up_with_what_there_is(tmp_path):
    def same(completions, **rest):
        return [1.0] * len(completions)

    module = GRPO("lit-align/tiny", rewards=same, sampling=Sampling(4), completions=2, dynamic_sampling=2)
    _, steps = fit(module, tmp_path, steps=1, batch_size=4)
    assert steps[0]["dynamic_sampling/filled"] == 0.0
    assert steps[0]["dynamic_sampling/rounds"] == 2.0


def test_a_number_that_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        DynamicSampling(0)
    with pytest.raises(ValueError, match="number of groups"):
        ReplayBuffer(-1)
