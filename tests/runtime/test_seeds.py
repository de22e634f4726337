import random

import numpy as np
import torch

from lit_align.runtime.seeds import derive, isolated, reseed


def draws() -> tuple[float, float, float]:
    return torch.rand(()).item(), random.random(), float(np.random.rand())


def test_places_have_seeds_of_their_own():
    places = [(seed, stream, epoch, batch, rank) for seed in (0, 1) for stream in ("batch", "rows")
              for epoch in range(3) for batch in range(20) for rank in range(2)]  # fmt: skip
    seeds = [derive(*place) for place in places]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_the_seed_of_a_place_never_changes():
    # Fixed, or a run could not be continued with a later version.
    assert derive(0, "batch", 1, 2, 3) == 3197167582547610023


def test_reseeding_repeats_all_three():
    reseed(derive(3, "x"))
    first = draws()
    reseed(derive(3, "x"))
    assert draws() == first


def test_outside_the_block_nothing_was_drawn():
    reseed(1)
    expected = draws()
    reseed(1)
    with isolated(7):
        inside = draws()
    assert draws() == expected
    assert inside != expected
