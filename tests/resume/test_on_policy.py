"""Algorithms that sample while they train go on bit for bit, with a rollout that is half used too."""

import pytest
import torch

ALGORITHMS = ["ppo", "ppo_critic", "grpo", "grpo_replay", "grpo_lora", "rloo", "reinforce_pp", "a2c"]
EPOCHS = {"max_epochs": 2}
#: 6 prompts, 2 a batch, 4 steps a batch: 12 micro-batches an epoch (3 of A2C, which steps once a rollout).
EVERY = {"every_n_train_steps": 1}


@pytest.mark.parametrize("algorithm", ["ppo", "grpo_replay"])
def test_a_half_used_rollout_is_used_up(runs, algorithm):
    spec = {"algorithm": algorithm, "trainer": EPOCHS, "saver": EVERY}
    whole = runs.ends(**spec)
    part = runs.killed(6, **spec)
    state = torch.load(part.last, weights_only=True)["on_policy"]["processes"][0]["buffer"]
    assert 0 < state["taken"] < len(state["plan"])
    assert runs.ends(ckpt=part.last, **spec).final == whole.final


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_killed_at_batches_all_along(runs, algorithm):
    spec = {"algorithm": algorithm, "trainer": EPOCHS, "saver": EVERY}
    whole = runs.ends(**spec)
    length = len(whole.batches)
    # Every third: all places in a rollout of four steps, and both epochs.
    for kill in range(1, length, 3):
        part = runs.killed(kill, **spec)
        assert runs.ends(ckpt=part.last, **spec).final == whole.final, f"killed after {kill} of {length}"


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["ppo", "grpo", "rloo", "a2c"])
@pytest.mark.parametrize("accumulate", [2, 8])
def test_windows_of_accumulation(runs, algorithm, accumulate):
    # Shorter than a rollout of four micro-batches, and two rollouts long.
    trainer = {"max_epochs": 3, "accumulate_grad_batches": accumulate}
    spec = {"algorithm": algorithm, "trainer": trainer, "saver": EVERY}
    whole = runs.ends(**spec)
    for kill in (5, 9, 14) if algorithm != "a2c" else (3, 5, 8):
        part = runs.killed(kill, **spec)
        assert runs.ends(ckpt=part.last, **spec).final == whole.final, f"killed after {kill}"


@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_two_runs_are_one(runs, algorithm):
    spec = {"algorithm": algorithm, "trainer": {"max_steps": 5}}
    first, second = runs.ends(**spec), runs.ends(**spec)
    assert first.final == second.final


def test_asked_to_stop_inside_a_rollout(runs):
    spec = {"algorithm": "ppo", "trainer": EPOCHS, "saver": {"every_n_train_steps": 100}}
    whole = runs.ends(**spec)
    part = runs(signals={7: "SIGTERM"}, **spec)
    assert part.code == 143, part.log
    path = part.out / "checkpoints" / "last-preempted.ckpt"
    assert runs.ends(ckpt=str(path), **spec).final == whole.final
