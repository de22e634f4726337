import numpy as np
import pytest
import torch

from lit_align.runtime.fingerprint import digest_of, fingerprint, frozen_digest

ROW = {"text": "a", "ids": [1, 2], "weight": 0.5, "t": torch.ones(2), "n": np.ones(2)}


@pytest.mark.parametrize(
    "change",
    [
        {"text": "b"},
        {"ids": [1, 3]},
        {"ids": [12]},
        {"weight": 1.0},
        {"t": torch.zeros(2)},
        {"n": np.zeros(2)},
    ],
)
def test_a_changed_row_is_seen(change):
    assert fingerprint([ROW, ROW]) == fingerprint([dict(ROW), dict(ROW)])
    assert fingerprint([ROW, ROW]) != fingerprint([ROW, ROW | change])


def test_a_row_more_is_seen():
    assert fingerprint([1] * 100) != fingerprint([1] * 101)


def test_what_is_drawn_at_random_is_no_content():
    class Noisy(list):
        def __getitem__(self, i):
            return super().__getitem__(i), torch.rand(3)

    assert fingerprint(Noisy([1, 2])) == fingerprint(Noisy([1, 2]))
    before = torch.random.get_rng_state()
    fingerprint(Noisy([1, 2]))
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_dataset_is_believed():
    class Told(list):
        fingerprint = "abc"

    assert fingerprint(Told([1])) == fingerprint(Told([2, 3]))


def test_objects_of_unknown_kind_do_not_shift_it():
    # The default repr has an address in it.
    assert digest_of([object()]) == digest_of([object()])


def test_bfloat16_and_empty_tensors():
    assert digest_of(torch.zeros(0)) != digest_of(torch.zeros(0, dtype=torch.bfloat16))
    assert digest_of(torch.ones(2, dtype=torch.bfloat16)) != digest_of(torch.zeros(2, dtype=torch.bfloat16))


def test_frozen_weights_are_told_apart():
    model = torch.nn.Sequential(torch.nn.Linear(30, 40), torch.nn.Linear(40, 2))
    assert frozen_digest(model) is None
    model[0].requires_grad_(False)
    before = frozen_digest(model)
    with torch.no_grad():
        model[1].weight.add_(1)
    assert frozen_digest(model) == before
    with torch.no_grad():
        model[0].weight[0, 0] += 1e-3
    assert frozen_digest(model) != before


def test_a_large_tensor_has_no_place_past_its_end() -> None:
    model = torch.nn.Module()
    # One number seen 25,600,000 times; float32 cannot tell the last place from the one behind it.
    model.weight = torch.nn.Parameter(torch.zeros(1).expand(25_600_000), requires_grad=False)
    assert frozen_digest(model) is not None
