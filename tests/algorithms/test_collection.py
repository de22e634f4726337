"""From prompts to experience: seeds, unscored completions, and the correction of the sampler."""

from dataclasses import replace

import pytest
import torch

from lit_align.algorithms.collection import generate, judge
from lit_align.algorithms.grpo import GRPO
from lit_align.batches import Forest
from lit_align.rollouts.correction import SamplerCorrection
from lit_align.rollouts.sampling import Sampling
from tests.algorithms.on_policy_runs import golden_policy, no_reward, rewarded


@pytest.fixture(scope="module")
def tiny():
    module = GRPO("lit-align/tiny", rewards=no_reward, sampling=Sampling(8), completions=2)
    module.configure_model()
    return module


def texts(forest):
    return [completion for _, completion, _ in forest.sequences()]


def test_a_completion_depends_on_its_row_and_not_on_the_batch(tiny):
    prompts = [[5, 6, 7], [8, 9], [10, 11, 12, 13]]
    whole = generate(tiny, Forest.from_lists(prompts, [[]] * 3, rows=[4, 7, 9]), "rollout 0")
    part = generate(tiny, Forest.from_lists(prompts[1:2], [[]], rows=[7]), "rollout 0")
    assert texts(part) == texts(whole)[2:4]
    other = generate(tiny, Forest.from_lists(prompts, [[]] * 3, rows=[4, 7, 9]), "rollout 1")
    assert texts(other) != texts(whole)


def test_a_row_that_comes_twice_is_answered_twice(tiny):
    forest = generate(tiny, Forest.from_lists([[5, 6, 7]] * 2, [[]] * 2, rows=[3, 3]), "rollout 0")
    assert texts(forest)[:2] != texts(forest)[2:]


def test_rows_and_records_go_with_their_prompts(tiny):
    prompts = Forest.from_lists([[5, 6]], [[]], rows=[3], records=[{"answer": 4}])
    forest = generate(tiny, prompts, "rollout 0")
    assert (forest.rows, forest.records) == ((3,), ({"answer": 4},))


def rollout(old):
    forest = Forest.from_lists([[5, 6]], [[[7, 8], [9]]])
    forest = replace(forest, completion_columns={"finished": torch.ones(2, dtype=torch.bool)})
    return forest.with_token_column("old_logps", torch.tensor(old))


def test_an_unscored_completion_has_no_weight(golden_models):
    module = GRPO(golden_policy(golden_models), rewards=no_reward, completions=2)
    module.configure_model()
    experience, metrics = judge(module, rollout([-1.0] * 3), rewarded([[None], [1.0]]))
    assert experience.weights.tolist() == [0.0, 0.0, 1.0]
    assert (metrics["reward"].value / metrics["reward"].weight).item() == 1.0


@pytest.mark.parametrize(
    ("correction", "expected"),
    [
        (SamplerCorrection("truncate", "token", 1.5), [1.5, 0.5, 1.0]),
        (SamplerCorrection("mask", "token", 1.5), [0.0, 0.5, 1.0]),
        (SamplerCorrection("truncate", "sequence", 3.0), [1.0, 1.0, 1.0]),
        (SamplerCorrection("mask", "sequence", 0.9), [0.0, 0.0, 0.0]),
    ],
)
def test_the_sampler_is_corrected(golden_models, correction, expected):
    """The sampler gave half, twice and exactly the probability of the trainer: the first two make 1."""
    module = GRPO(golden_policy(golden_models), rewards=no_reward, completions=2, correction=correction)
    module.configure_model()
    with torch.no_grad():
        logps = module.policy(rollout([0.0] * 3)).logps
    sampler = logps - torch.tensor([2.0, 0.5, 1.0]).log()
    experience, _ = judge(module, rollout(sampler.tolist()), rewarded([[0.0], [1.0]]))
    torch.testing.assert_close(
        experience.token_columns["sampler_weights"], torch.tensor(expected), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(experience.token_columns["old_logps"], logps)
