"""Runs over two processes, killed or asked to stop, go on with two or with one."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("runs.py")
TWO = {"max_epochs": 2, "devices": 2, "strategy": "ddp"}


def two(out: Path, **spec) -> subprocess.CompletedProcess:
    env = {
        k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "LOCAL_RANK", "WORLD", "MASTER"))
    }
    command = [sys.executable, str(SCRIPT), json.dumps({"out": str(out), **spec})]
    return subprocess.run(
        command, env=env | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300, check=False
    )


def final(out: Path) -> dict:
    return json.loads((out / "result.json").read_text())


def newest(out: Path) -> str:
    return str(max((out / "checkpoints").glob("*.ckpt"), key=os.path.getmtime))


@pytest.mark.slow
def test_killed_and_resumed(tmp_path):
    spec = {"algorithm": "sft", "trainer": TWO, "data": {"count": 18, "num_workers": 0}}
    whole = two(tmp_path / "whole", **spec)
    assert whole.returncode == 0, whole.stderr[-2000:]
    part = two(tmp_path / "part", kill_at=4, **spec)
    assert part.returncode == -signal.SIGKILL, part.stderr[-2000:]
    rest = two(tmp_path / "rest", ckpt=newest(tmp_path / "part"), **spec)
    assert rest.returncode == 0, rest.stderr[-2000:]
    assert final(tmp_path / "rest") == final(tmp_path / "whole")


@pytest.mark.slow
def test_killed_within_the_repeats_of_a_batch(tmp_path):
    """Each process goes on with its own batch, as often as was left."""
    spec = {
        "algorithm": "prompts",
        "trainer": TWO,
        "data": {"count": 18},
        "saver": {"every_n_train_steps": 1},
    }
    whole = two(tmp_path / "whole", **spec)
    assert whole.returncode == 0, whole.stderr[-2000:]
    part = two(tmp_path / "part", kill_at=5, **spec)
    assert part.returncode == -signal.SIGKILL, part.stderr[-2000:]
    rest = two(tmp_path / "rest", ckpt=newest(tmp_path / "part"), **spec)
    assert rest.returncode == 0, rest.stderr[-2000:]
    assert final(tmp_path / "rest") == final(tmp_path / "whole")


@pytest.mark.slow
def test_one_signal_stops_both_at_the_same_step(tmp_path):
    spec = {"algorithm": "sft", "trainer": TWO, "saver": {"every_n_train_steps": 100}}
    whole = two(tmp_path / "whole", **spec)
    # To process zero alone; the other learns of it at the step.
    part = two(tmp_path / "part", signals={"2": "SIGTERM"}, **spec)
    assert part.returncode == 143, part.stderr[-2000:]
    path = tmp_path / "part" / "checkpoints" / "last-preempted.ckpt"
    assert torch.load(path, weights_only=True)["global_step"] == 2
    rest = two(tmp_path / "rest", ckpt=str(path), **spec)
    assert rest.returncode == 0, rest.stderr[-2000:]
    assert whole.returncode == 0
    assert final(tmp_path / "rest") == final(tmp_path / "whole")


@pytest.mark.slow
def test_two_to_one_to_two_keeps_the_order(tmp_path, runs):
    """Rows are seen once an epoch, in the order of the seed, whoever sees them."""
    data = {"count": 18, "batch_size": 2}
    spec = {"algorithm": "sft", "data": data, "saver": {"every_n_train_steps": 1}}
    first = two(tmp_path / "first", trainer=TWO | {"max_steps": 2}, **spec)
    assert first.returncode == 0, first.stderr[-2000:]
    # Two steps of two processes are four batches of the nine.
    second = runs.ends(ckpt=newest(tmp_path / "first"), trainer={"max_epochs": 2, "max_steps": 4}, **spec)
    third = two(tmp_path / "third", ckpt=second.last, trainer=TWO, **spec)
    assert third.returncode == 0, third.stderr[-2000:]
    alone = runs.ends(trainer={"max_epochs": 1}, **spec)
    expected = [rows for _, _, rows, _ in alone.batches]

    def seen(out: Path) -> list:
        lines = (out / "batches.jsonl").read_text().splitlines()
        return [(rows, step) for epoch, _, rows, step in map(json.loads, lines) if epoch == 0]

    before = [rows for rows, _ in seen(tmp_path / "first")]
    between = [rows for epoch, _, rows, _ in second.batches if epoch == 0]
    after = [row for rows, _ in seen(tmp_path / "third") for row in rows]
    assert sorted(before) == sorted(expected[:4])
    assert between == expected[4:6]
    assert sorted(after) == sorted(row for rows in expected[6:] for row in rows)
