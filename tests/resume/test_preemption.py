"""A run that is asked to stop saves at a step boundary, says so by its status, and goes on exactly."""

import os
from pathlib import Path

import pytest
import torch

RARELY = {"every_n_train_steps": 100}


def saved(path: Path) -> dict:
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize(("at", "name"), [(1, "SIGTERM"), (9, "SIGINT")])
def test_saved_and_continued(runs, at, name):
    spec = {"algorithm": "sft", "trainer": {"max_epochs": 2}, "saver": RARELY}
    whole = runs.ends(**spec)
    part = runs(signals={at: name}, **spec)
    assert part.code == 143, part.log
    assert f"{name}: saving at the next optimiser step" in part.log
    path = part.out / "checkpoints" / "last-preempted.ckpt"
    assert saved(path)["global_step"] == at
    assert runs.ends(ckpt=str(path), **spec).final == whole.final


def test_nothing_half_accumulated_is_saved(runs):
    trainer = {"max_epochs": 2, "accumulate_grad_batches": 3}
    spec = {"algorithm": "sft", "trainer": trainer, "saver": RARELY}
    whole = runs.ends(**spec)
    # The second of the three micro-batches of the second window.
    part = runs(signals={5: "SIGTERM"}, **spec)
    assert part.code == 143, part.log
    assert len(part.batches) == 6
    path = part.out / "checkpoints" / "last-preempted.ckpt"
    assert saved(path)["global_step"] == 2
    assert runs.ends(ckpt=str(path), **spec).final == whole.final


def test_a_second_interrupt_stops_at_once(runs):
    trainer = {"max_epochs": 1, "accumulate_grad_batches": 4}
    part = runs(algorithm="sft", trainer=trainer, saver=RARELY, signals={1: "SIGINT", 2: "SIGINT"})
    assert part.code == 1
    assert len(part.batches) == 1
    assert not list(part.out.glob("checkpoints/*.ckpt"))


def test_a_touched_file_saves_and_goes_on(runs):
    part = runs.ends(algorithm="sft", trainer={"max_epochs": 1}, saver=RARELY, touch_at=4)
    assert saved(part.out / "checkpoints" / "last-requested.ckpt")["global_step"] == 4
    assert not (part.out / "SAVE").exists()
    assert part.final["global_step"] == 7


SLURM = {
    "SLURM_NTASKS": "1",
    "SLURM_JOB_ID": "4711",
    "SLURM_JOB_NAME": "train",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
}


@pytest.mark.parametrize(
    ("array", "job"),
    [({}, "4711"), ({"SLURM_ARRAY_JOB_ID": "47", "SLURM_ARRAY_TASK_ID": "3"}, "47_3")],
    ids=["job", "task of an array"],
)
def test_slurm_requeues_and_the_run_goes_on(runs, tmp_path, array, job):
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/told\n')
    scontrol.chmod(0o755)
    env = SLURM | array | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    trainer = {"max_epochs": 2, "accumulate_grad_batches": 2}
    spec = {"algorithm": "sft", "trainer": trainer, "saver": RARELY}
    whole = runs.ends(**spec)
    # The first micro-batch of the second window.
    part = runs(signals={3: "SIGUSR1"}, env=env, **spec)
    assert part.code == 143, part.log
    assert (tmp_path / "told").read_text() == f"requeue {job}\n"
    path = part.out / "checkpoints" / "last-preempted.ckpt"
    assert saved(path)["global_step"] == 2
    assert runs.ends(ckpt=str(path), env=env, **spec).final == whole.final


def test_a_plain_stop_under_slurm_requeues_nothing(runs, tmp_path):
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/told\n')
    scontrol.chmod(0o755)
    env = SLURM | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    part = runs(algorithm="sft", trainer={"max_epochs": 1}, saver=RARELY, signals={2: "SIGTERM"}, env=env)
    assert part.code == 143, part.log
    assert saved(part.out / "checkpoints" / "last-preempted.ckpt")["global_step"] == 2
    assert not (tmp_path / "told").exists()


def test_where_nothing_can_requeue_it_says_so(runs):
    env = SLURM | {"PATH": "/nowhere"}
    part = runs(algorithm="sft", trainer={"max_epochs": 1}, saver=RARELY, signals={2: "SIGUSR1"}, env=env)
    assert part.code == 143, part.log
    assert "job 4711 could not be requeued" in part.log
