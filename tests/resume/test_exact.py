"""A killed run, resumed, ends with the very weights of the run that was not killed."""

import pytest
import torch

from lit_align.runtime.checkpoint_io import AtomicCheckpointIO

EPOCHS = {"max_epochs": 3}
# 13 rows, 2 a batch: 7 batches an epoch. A checkpoint after every third optimiser step.
CASES = {
    "plain": {"trainer": EPOCHS},
    "other callbacks draw random numbers": {"trainer": EPOCHS, "disturb": True},
    "max_steps in the middle of an epoch": {"trainer": {"max_steps": 17}},
    "max_steps and max_epochs": {"trainer": {"max_steps": 17, "max_epochs": 4}},
    "accumulation": {
        "trainer": {**EPOCHS, "accumulate_grad_batches": 3},
        "saver": {"every_n_train_steps": 1},
    },
    "validation between": {"trainer": {**EPOCHS, "val_check_interval": 2}},
    "saved at epoch ends": {
        "trainer": EPOCHS,
        "saver": {"every_n_train_steps": None, "every_n_epochs": 1, "save_on_train_epoch_end": True},
    },
    "saved at epoch ends, max_steps": {
        "trainer": {"max_steps": 17},
        "saver": {"every_n_train_steps": None, "every_n_epochs": 1, "save_on_train_epoch_end": True},
    },
    "saved after validation inside a window": {
        "trainer": {**EPOCHS, "val_check_interval": 2, "accumulate_grad_batches": 3},
        "saver": {"every_n_train_steps": None, "every_n_epochs": 1, "save_on_train_epoch_end": False},
    },
    "token budget, length buckets": {
        "trainer": EPOCHS,
        "data": {"length_bucketing": True, "batch_tokens": 40},
    },
    "limit_train_batches": {"trainer": {**EPOCHS, "limit_train_batches": 5}},
    "two workers": {"trainer": EPOCHS, "data": {"num_workers": 2}},
}


def check(runs, kills, **spec):
    whole = runs.ends(**spec)
    for kill in kills:
        part = runs.killed(kill, **spec)
        rest = runs.ends(ckpt=part.last, **spec)
        assert rest.final == whole.final, f"killed after {kill} batches, went on from {part.last}"


FAST = ("plain", "accumulation", "saved at epoch ends, max_steps", "saved after validation inside a window")


@pytest.mark.parametrize("case", FAST)
def test_sft_continues_bit_for_bit(runs, case):
    check(runs, (8,), algorithm="sft", **CASES[case])


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["sft_lora", "reward", "dpo", "dpo_lora"])
def test_other_algorithms_continue_bit_for_bit(runs, algorithm):
    check(runs, (4, 8), algorithm=algorithm, trainer={"max_epochs": 2})


@pytest.mark.parametrize("algorithm", ["dpo_ema", "dpo_cached"])
def test_references_with_a_state_continue_bit_for_bit(runs, algorithm):
    check(runs, (8,), algorithm=algorithm, trainer={"max_epochs": 2})


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stranger_continues_bit_for_bit(runs, workers):
    # Its dataset, its dropout and its loss draw from the global generators, and its schedule asks for the
    # total number of steps. Killed before anything was saved, and at the end of the first epoch.
    check(runs, (2, 7), algorithm="foreign", trainer=EPOCHS, data={"num_workers": workers})


def test_repeated_batches_continue_within_their_repeats(runs):
    # 7 batches of prompts, three times each; killed with 2, 3 and 1 times of a batch in the checkpoint, and
    # at the end of the epoch.
    spec = {"algorithm": "prompts", "trainer": {"max_epochs": 2}, "saver": {"every_n_train_steps": 1}}
    whole = runs.ends(**spec)
    rows = [rows for epoch, _, rows, _ in whole.batches if epoch == 0]
    assert rows[::3] == rows[1::3] == rows[2::3]
    assert sorted(row for of_batch in rows[::3] for row in of_batch) == list(range(13))
    check(runs, (5, 6, 7, 21), **spec)


def test_repeated_batches_and_accumulation(runs):
    trainer = {"max_epochs": 2, "accumulate_grad_batches": 3}
    check(runs, (5, 13), algorithm="prompts", trainer=trainer, saver={"every_n_train_steps": 1})


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_killed_at_every_batch(runs, case):
    # The run of limit_train_batches is 15 batches long; the others are longer than 16.
    last = 14 if case == "limit_train_batches" else 16
    check(runs, range(1, last + 1), algorithm="sft", **CASES[case])


def test_two_runs_are_one(runs):
    spec = {"algorithm": "sft", "trainer": {"max_epochs": 1}}
    first, second = runs.ends(**spec), runs.ends(**spec)
    other = runs.ends(**spec, resume={"seed": 6})
    assert first.final == second.final
    assert first.final["digest"] != other.final["digest"]


def test_without_the_callback_state_the_run_differs(runs):
    # The comparison can fail: the same kill, gone on from with another seed.
    spec = {"algorithm": "sft", "trainer": {"max_epochs": 2}}
    whole = runs.ends(**spec)
    part = runs.killed(8, **spec)
    rest = runs.ends(ckpt=part.last, resume={"seed": 6}, **spec)
    assert rest.final["digest"] != whole.final["digest"]


def test_every_row_once_an_epoch_in_another_order(runs):
    whole = runs.ends(algorithm="sft", trainer={"max_epochs": 2})
    orders = [[row for e, _, rows, _ in whole.batches if e == epoch for row in rows] for epoch in (0, 1)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(13))
    assert orders[0] != orders[1]


def test_changed_data_is_refused_by_name(runs):
    spec = {"algorithm": "sft", "trainer": {"max_epochs": 2}}
    part = runs.killed(8, **spec)
    changed = runs(ckpt=part.last, data={"start": 1}, **spec)
    assert changed.code == 1
    assert "DataChanged" in changed.log
    assert "data: " in changed.log
    assert " then, " in changed.log


def test_changed_data_begins_the_epoch_anew_when_asked_to(runs):
    spec = {"algorithm": "sft", "trainer": {"max_epochs": 2}}
    part = runs.killed(11, **spec)
    changed = runs.ends(
        ckpt=part.last, data={"start": 1, "count": 9}, resume={"seed": 5, "on_changed": "restart"}, **spec
    )
    # Saved after step 9, two batches into epoch 1, of which now 5 batches are done.
    assert [(epoch, at) for epoch, at, _, _ in changed.batches] == [(1, i) for i in range(5)]
    assert changed.batches[0][3] == 9
    assert sorted(row for _, _, rows, _ in changed.batches for row in rows) == list(range(9))


def test_another_seed_of_the_order_is_changed_data(runs):
    spec = {"algorithm": "sft", "trainer": {"max_epochs": 2}}
    part = runs.killed(8, **spec)
    changed = runs(ckpt=part.last, data={"seed": 3}, **spec)
    assert changed.code == 1
    assert "order of the data" in changed.log


def test_adapters_on_another_base_are_refused_by_both_names(runs):
    spec = {"algorithm": "sft_lora", "trainer": {"max_epochs": 2}}
    part = runs.killed(8, **spec)
    state = torch.load(part.last, weights_only=True)
    state["base"]["digest"] = "0123456789abcdef"
    changed = f"{part.out}/other-base.ckpt"
    AtomicCheckpointIO().save_checkpoint(state, changed)
    refused = runs(ckpt=changed, **spec)
    assert refused.code == 1
    assert "trained on another base: a model in memory (0123456789abcdef) then" in refused.log
