"""State of several processes in one checkpoint."""

import pytest

from lit_align.algorithms import rollout_state
from lit_align.algorithms.ppo import PPO
from lit_align.algorithms.rollout_state import dealt, gathered, place
from lit_align.rollouts.sampling import Sampling


def test_one_process_is_alone():
    assert place(PPO("lit-align/tiny", rewards=Counting(), sampling=Sampling(4))) == (0, 1)
    assert gathered({"a": 1}) == [{"a": 1}]


def test_as_many_processes_keep_their_own():
    assert [dealt([[1, 2], [3]], rank, 2) for rank in range(2)] == [[1, 2], [3]]


def test_others_share_everything_out():
    shares = [dealt([[1, 2], [3, 4, 5]], rank, 3) for rank in range(3)]
    assert shares == [[1, 4], [2, 5], [3]]


class Counting:
    """A reward function that remembers how many completions it judged."""

    def __init__(self):
        self.judged = 0

    def __call__(self, completions):
        self.judged += len(completions)
        return [0.0] * len(completions)

    def state_dict(self):
        return {"judged": self.judged}

    def load_state_dict(self, state):
        self.judged = state["judged"]


@pytest.mark.parametrize(("world_size", "expected"), [(2, [3, 5]), (1, [3])])
def test_each_process_gets_back_what_its_rewards_remember(monkeypatch, world_size, expected):
    saved = []
    for judged in (3, 5):
        module = PPO("lit-align/tiny", rewards=Counting(), sampling=Sampling(4))
        module.rewards.functions["Counting"].function([""] * judged)
        saved.append(rollout_state.saved(module))
    together = {**saved[0], "processes": [one["processes"][0] for one in saved]}
    found = []
    for rank in range(world_size):
        monkeypatch.setattr(rollout_state, "place", lambda module, rank=rank: (rank, world_size))
        module = PPO("lit-align/tiny", rewards=Counting(), sampling=Sampling(4))
        rollout_state.take_up(module, together)
        found.append(module.rewards.functions["Counting"].function.judged)
    assert found == expected
