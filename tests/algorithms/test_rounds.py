"""Rounds by hand, as in a notebook."""

import pytest
import torch

from lit_align.algorithms.grpo import GRPO
from lit_align.algorithms.ppo import PPO
from lit_align.rollouts.sampling import Sampling
from lit_align.scoring.references import EMA
from tests.algorithms.on_policy_runs import digest, fit, no_reward

LAMP = [{"role": "user", "content": "My lamp will not turn on."}]


def build(kind=PPO, **arguments):
    torch.manual_seed(0)
    options = {"rewards": no_reward, "sampling": Sampling(16), "lr": 1e-3}
    return kind("lit-align/tiny", **(options | arguments))


def test_a_policy_responds():
    module = build()
    found = module.respond([LAMP, "Hello"], completions=2, seed=3)
    assert found.prompts == [0, 0, 1, 1]
    assert [len(x) for x in found.ids] == [len(x) for x in found.logps] == [len(x) for x in found.values]
    assert found.texts == module.tokenizer.batch_decode(found.ids, skip_special_tokens=True)
    assert all((logps <= 0).all() for logps in found.logps)
    assert found.texts == module.respond([LAMP, "Hello"], completions=2, seed=3).texts
    assert found.texts != module.respond([LAMP, "Hello"], completions=2, seed=4).texts


@pytest.mark.parametrize("critic", ["shared", "lit-align/tiny"])
def test_a_round_makes_what_was_rewarded_likelier(critic):
    module = build(critic=critic, num_epochs=4)
    found = module.respond([LAMP], completions=8)
    liked = min(found.texts)
    rewards = [1.0 if text == liked else 0.0 for text in found.texts]

    def logp():
        with torch.no_grad():
            batch = rounds_forest(module, found)
            return batch.sum_per_completion(module.policy.eval()(batch).logps)

    before = logp()
    metrics = module.step([LAMP] * 8, found.ids, rewards)
    gain = logp() - before
    best = torch.tensor(rewards) == 1
    assert gain[best].mean() > gain[~best].mean()
    assert metrics["reward"] == pytest.approx(sum(rewards) / 8)
    assert module.buffer.empty


def rounds_forest(module, found):
    from lit_align.batches import Forest
    from lit_align.rollouts.generate import encode_prompt

    return Forest.from_lists([encode_prompt(module.tokenizer, LAMP)], [found.ids])


def test_completions_may_be_anyones_words():
    module = build()
    before = None
    module.configure_model()
    before = digest(module)
    metrics = module.step([LAMP, LAMP], ["Please press the button.", "Whatever."], [1.0, -1.0])
    assert metrics["objective/scores"] == pytest.approx(0.0)
    assert any(not torch.equal(before[n], p) for n, p in digest(module).items())


def test_a_completion_without_a_reward_is_left_out():
    module = build(GRPO, completions=2)
    metrics = module.step([LAMP] * 3, ["One.", "Two.", "Three."], [1.0, None, 0.0])
    assert metrics["reward"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("prompts", "completions", "rewards", "message"),
    [
        ([LAMP], ["a", "b"], [1.0, 2.0], "1 prompts and 2 completions"),
        ([LAMP], [[]], [1.0], "completion 0 is empty"),
        ([LAMP], ["a"], [1.0, 2.0], "2 rewards for 1 completions"),
    ],
)
def test_what_does_not_fit_together_is_refused(prompts, completions, rewards, message):
    with pytest.raises(ValueError, match=message):
        build().step(prompts, completions, rewards)


def test_rewards_that_are_given_need_no_function(tmp_path):
    module = build(rewards=None, num_epochs=1)
    metrics = module.step([LAMP, "Hello"], ["One.", "Two."], [3.0, None])
    # What has no reward is in no average.
    assert metrics["objective/scores"] == metrics["reward"] == 3.0
    with pytest.raises(ValueError, match="PPO has no rewards: give a function"):
        fit(module, tmp_path)


def test_a_round_leaves_every_mode_as_it_was():
    module = build(critic="lit-align/tiny", num_epochs=1)
    module.configure_model()
    module.policy.model.lm_head.eval()
    module.critic.eval()
    modes = [part.training for part in module.modules()]
    module.step(["Hello"] * 2, ["Thank you.", "No."], [1.0, 0.0])
    assert [part.training for part in module.modules()] == modes


def test_a_reference_that_follows_the_policy_follows_it_here_too():
    module = build(GRPO, completions=2, beta=0.1, reference=EMA(alpha=1.0, interval=1))
    module.step([LAMP] * 2, ["One.", "Two."], [1.0, 0.0])
    mine = dict(module.reference.frozen.named_parameters())
    assert all(torch.equal(mine[n], p) for n, p in module.policy.named_parameters() if p.requires_grad)
