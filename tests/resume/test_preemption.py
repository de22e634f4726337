"""A run that is asked to stop saves at a step boundary, says so by its status, and goes on exactly."""

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
