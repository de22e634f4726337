"""Runs over two processes, killed or asked to stop, go on with two or with one."""

import pytest
import torch

from lit_align.runtime.checkpoint_io import AtomicCheckpointIO

TWO = {"max_epochs": 2, "devices": 2, "strategy": "ddp"}
SHARDED = TWO | {"strategy": "fsdp2"}
# Both read the same rows.
SPLIT = TWO | {"strategy": {"tensor_parallel_size": 2}}
RARELY = {"every_n_train_steps": 100}


@pytest.mark.slow
@pytest.mark.parametrize("trainer", [TWO, SHARDED, SPLIT], ids=["ddp", "fsdp2", "split"])
@pytest.mark.parametrize("algorithm", ["sft", "dpo_ema", "ppo", "grpo_replay"])
def test_killed_and_resumed(runs, algorithm, trainer):
    # 8 prompts (4 where both read the same), 2 a batch and process: two batches an epoch, of four steps each.
    # 18 rows: 5 batches, or 9.
    sampled = algorithm in ("ppo", "grpo_replay")
    data = {"count": (4 if trainer is SPLIT else 8) if sampled else 18}
    spec = {"algorithm": algorithm, "trainer": trainer, "data": data}
    whole = runs.ends(**spec)
    part = runs.killed(7, **spec)
    assert runs.ends(ckpt=part.last, **spec).final == whole.final


@pytest.mark.slow
@pytest.mark.parametrize("trainer", [TWO, SHARDED], ids=["ddp", "fsdp2"])
def test_one_signal_stops_both_at_the_same_step(runs, trainer):
    spec = {"algorithm": "sft", "trainer": trainer, "saver": RARELY}
    whole = runs.ends(**spec)
    # To process zero alone; the other learns of it at the step.
    part = runs(signals={"2": "SIGTERM"}, **spec)
    assert part.code == 143, part.log
    path = part.out / "checkpoints" / "last-preempted.ckpt"
    assert AtomicCheckpointIO().load_checkpoint(path)["global_step"] == 2
    assert runs.ends(ckpt=str(path), **spec).final == whole.final


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_to_one_to_two_keeps_the_order(runs, strategy):
    """Rows are seen once an epoch, in the order of the seed, whoever sees them."""
    data = {"count": 18, "batch_size": 2}
    spec = {"algorithm": "sft", "data": data, "saver": {"every_n_train_steps": 1}}
    two = TWO | {"strategy": strategy}
    first = runs.ends(trainer=two | {"max_steps": 2}, **spec)
    # Two steps of two processes are four batches of the nine.
    second = runs.ends(ckpt=first.last, trainer={"max_epochs": 2, "max_steps": 4}, **spec)
    third = runs.ends(ckpt=second.last, trainer=two, **spec)
    alone = runs.ends(trainer={"max_epochs": 1}, **spec)
    expected = [rows for _, _, rows, _ in alone.batches]
    before, between, after = (
        [rows for epoch, _, rows, _ in run.batches if epoch == 0] for run in (first, second, third)
    )
    assert sorted(before) == sorted(expected[:4])
    assert between == expected[4:6]
    assert sorted(row for rows in after for row in rows) == sorted(
        row for rows in expected[6:] for row in rows
    )


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
def test_a_rollout_of_two_is_used_up_by_one(runs, algorithm):
    """From the middle of a rollout of two processes: what both held is learned from once."""
    spec = {"algorithm": algorithm, "saver": {"every_n_train_steps": 1}}
    first = runs.ends(trainer=TWO | {"max_steps": 2}, data={"count": 8}, **spec)
    state = torch.load(first.last, weights_only=True)["on_policy"]["processes"]
    assert [one["buffer"]["taken"] for one in state] == [2, 2]
    # As many prompts a step, in one process.
    second = runs.ends(ckpt=first.last, trainer={"max_epochs": 1}, data={"count": 8, "batch_size": 4}, **spec)
    began = sorted({row for _, _, rows, _ in first.batches for row in rows})
    # Two steps of the four are left of the first rollout, and then the other prompts have theirs.
    assert [sorted(rows) for _, _, rows, _ in second.batches[:2]] == [began] * 2
    others = [sorted(rows) for _, _, rows, _ in second.batches[2:]]
    assert others == [sorted(set(range(8)) - set(began))] * 4
    assert second.final["global_step"] == 8
