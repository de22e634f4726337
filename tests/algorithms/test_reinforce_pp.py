"""REINFORCE++ against its formula, worked out by hand."""

import pytest
import torch

from lit_align.algorithms.collection import judge
from lit_align.algorithms.reinforce_pp import ReinforcePP
from lit_align.batches import Forest
from lit_align.rollouts.sampling import Sampling
from tests.algorithms.on_policy_runs import fit, golden_policy, no_reward, rewarded


def rollout(prompts=2, completions=2):
    ids = [[5, 6]] * prompts
    groups = [[[7, 8, 2], [9, 2]][:completions] for _ in range(prompts)]
    forest = Forest.from_lists(ids, groups)
    columns = {"finished": torch.ones(forest.num_completions, dtype=torch.bool)}
    forest = Forest(**{**forest.__dict__, "completion_columns": columns})
    return forest.with_token_column("old_logps", torch.full((len(forest.completion_ids),), -1.0))


def build(golden_models, **arguments):
    module = ReinforcePP(golden_policy(golden_models), rewards=no_reward, **arguments)
    module.configure_model()
    return module


def test_every_token_has_the_whitened_return(golden_models):
    """Without KL and discount every token's return is the score: 4 tokens of 1 and 0, 3 tokens of 0 and 1."""
    module = build(golden_models, beta=0.0)
    experience, _ = judge(module, rollout(completions=2), rewarded([[1.0], [0.0], [0.0], [3.0]]))
    returns = torch.tensor([1.0] * 3 + [0.0] * 2 + [0.0] * 3 + [3.0] * 2)
    expected = (returns - returns.mean()) / (returns.var() + 1e-8).sqrt()
    torch.testing.assert_close(experience.token_columns["advantages"], expected)


def test_the_discount_counts_the_tokens_to_the_end(golden_models):
    module = build(golden_models, beta=0.0, gamma=0.5)
    experience, _ = judge(module, rollout(1, 2), rewarded([[4.0], [8.0]]))
    returns = torch.tensor([1.0, 2.0, 4.0, 4.0, 8.0])
    expected = (returns - returns.mean()) / (returns.var() + 1e-8).sqrt()
    torch.testing.assert_close(experience.token_columns["advantages"], expected)


def test_the_penalty_is_what_the_reference_thinks_less_of(golden_models):
    """With scores of 0 the advantage is minus the KL to come, whitened."""
    module = build(golden_models, beta=0.5)
    forest = rollout(1, 2)
    experience, metrics = judge(module, forest, rewarded([[0.0], [0.0]]))
    kl = -1.0 - experience.token_columns["reference_logps"]
    to_come = torch.cat([kl[:3].flip(0).cumsum(0).flip(0), kl[3:].flip(0).cumsum(0).flip(0)])
    returns = -0.5 * to_come
    expected = (returns - returns.mean()) / (returns.var() + 1e-8).sqrt()
    torch.testing.assert_close(experience.token_columns["advantages"], expected, rtol=1e-4, atol=1e-5)
    assert metrics["objective/kl"].value.item() == pytest.approx(kl.sum().item(), rel=1e-5)


def test_a_group_can_be_the_baseline(golden_models):
    module = build(golden_models, beta=0.0, baseline="group", completions=2)
    experience, _ = judge(module, rollout(), rewarded([[1.0], [0.0], [0.0], [3.0]]))
    centred = torch.tensor([0.5, -0.5, -1.5, 1.5])
    each = (centred - centred.mean()) / (centred.std() + 1e-8)
    expected = each[experience.sequence]
    torch.testing.assert_close(experience.token_columns["advantages"], expected)


def test_an_unscored_completion_is_in_no_sum(golden_models):
    module = build(golden_models, beta=0.0)
    experience, _ = judge(module, rollout(1, 2), rewarded([[1.0], [None]]))
    assert experience.weights.tolist() == [1, 1, 1, 0, 0]
    assert experience.token_columns["advantages"].tolist() == [0.0] * 5


def test_it_trains(tmp_path):
    def polite(completions, **rest):
        return [float("please" in text.lower()) for text in completions]

    module = ReinforcePP("lit-align/tiny", rewards=polite, sampling=Sampling(8), lr=1e-4)
    _, steps = fit(module, tmp_path, steps=2)
    assert steps[0]["val/ratio"] == 1.0
    assert steps[-1]["objective/kl"] != 0.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"baseline": "mean"}, "batch or group"), ({"baseline": "group"}, "at least 2")],
)
def test_settings_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ReinforcePP("lit-align/tiny", rewards=no_reward, **arguments)
