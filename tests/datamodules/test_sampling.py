from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_align.datamodules.sampling import BatchOrder

lengths = st.lists(st.integers(1, 50), min_size=4, max_size=80)
how = st.fixed_dictionaries(
    {
        "batch_size": st.integers(1, 9),
        "batch_tokens": st.none() | st.integers(1, 120),
        "length_bucketing": st.booleans(),
        "shuffle": st.booleans(),
        "seed": st.integers(0, 2**40),
    }
)


def ranks(lengths, world, epoch=0, start=None, **options):
    """The batches of each rank."""
    found = []
    for rank in range(world):
        order = BatchOrder(lengths, num_replicas=world, rank=rank, **options)
        order.set_epoch(epoch)
        if start is not None:
            order.start_at(epoch, start)
        found.append(list(order))
    return found


def by_turns(batches_of_ranks):
    """Batches in the order in which the ranks together see them."""
    return [batch for turn in zip(*batches_of_ranks, strict=True) for batch in turn]


def flat(batches):
    return [row for batch in batches for row in batch]


@given(lengths, how, st.integers(1, 4), st.integers(0, 3))
def test_evaluation_sees_every_row_once(lengths, how, world, epoch):
    seen = ranks(lengths, world, epoch, evaluation=True, **how)
    assert sorted(flat(flat(seen))) == list(range(len(lengths)))
    assert len({len(batches) for batches in seen}) == 1


@given(lengths, how, st.integers(1, 4), st.integers(0, 3))
def test_training_repeats_no_row_and_loses_less_than_one_per_rank(lengths, how, world, epoch):
    seen = ranks(lengths, world, epoch, **how)
    rows = flat(flat(seen))
    assert len(set(rows)) == len(rows) > len(lengths) - world
    assert len({len(batches) for batches in seen}) == 1
    assert all(flat(seen))


@given(lengths, how, st.integers(2, 4), st.integers(0, 3))
def test_the_order_does_not_depend_on_the_number_of_ranks(lengths, how, world, epoch):
    (alone,) = ranks(lengths, 1, epoch, **how)
    together = by_turns(ranks(lengths, world, epoch, **how))
    rows = flat(together)
    assert rows == flat(alone)[: len(rows)]
    whole = len(alone) - len(alone) % world
    assert together[:whole] == alone[:whole]


@given(lengths, how, st.integers(1, 3))
def test_the_order_is_a_function_of_seed_and_epoch(lengths, how, world):
    again = [ranks(lengths, world, epoch, **how) for epoch in (0, 1, 0)]
    assert again[0] == again[2]


def test_epochs_and_seeds_differ():
    orders = [
        flat(flat(ranks([1] * 50, 1, epoch, seed=seed))) for seed, epoch in [(0, 0), (0, 1), (1, 0), (1, 1)]
    ]
    assert len({tuple(order) for order in orders}) == 4


@given(lengths, how, st.integers(1, 3), st.integers(1, 3), st.integers(0, 5), st.integers(0, 2))
def test_a_run_goes_on_where_it_stopped_also_with_other_ranks(lengths, how, world, other, done, epoch):
    order = BatchOrder(lengths, num_replicas=world, **how)
    order.set_epoch(epoch)
    done = min(done, len(order))
    position = order.position(done)
    before = flat(by_turns(ranks(lengths, world, epoch, **how))[: done * world])
    assert position == len(before)
    after = flat(by_turns(ranks(lengths, other, epoch, start=position, **how)))
    everything = flat(by_turns(ranks(lengths, 1, epoch, **how)))
    assert before + after == everything[: len(before + after)]
    # What is missing at the end is less than one row per rank.
    assert len(everything) - len(before + after) < max(world, other)


def test_positions_go_on_counting_after_a_resume():
    order = BatchOrder([1] * 20, 3)
    order.start_at(0, 6)
    assert [order.position(n) for n in (0, 1, 5)] == [6, 9, 20]


def test_a_start_belongs_to_its_epoch():
    order = BatchOrder([1] * 10, 2)
    order.start_at(1, 4)
    assert len(flat(order)) == 10
    order.set_epoch(1)
    assert order.skip == 4
    assert len(flat(order)) == 6
    assert len(order) == 5
    order.set_epoch(2)
    assert len(flat(order)) == 10


@given(lengths, st.integers(1, 120), st.booleans())
def test_a_budget_of_tokens_holds(lengths, budget, bucketing):
    order = BatchOrder(lengths, batch_tokens=budget, length_bucketing=bucketing)
    for batch in order:
        assert len(batch) == 1 or sum(lengths[i] for i in batch) <= budget


@given(lengths, st.integers(1, 120), st.integers(2, 3))
def test_a_budget_holds_on_every_rank(lengths, budget, world):
    for batch in flat(ranks(lengths, world, batch_tokens=budget)):
        assert len(batch) == 1 or sum(lengths[i] for i in batch) <= budget


def test_buckets_hold_similar_lengths():
    lengths = [1, 100] * 32
    mixed = [{lengths[i] for i in batch} for batch in BatchOrder(lengths, 4, length_bucketing=True)]
    assert sum(len(found) > 1 for found in mixed) == 0


def test_drop_last():
    assert [len(batch) for batch in BatchOrder([1] * 10, 4, drop_last=True)] == [4, 4]
    assert [len(batch) for batch in BatchOrder([1] * 10, 4)] == [4, 4, 2]


def test_evaluation_keeps_the_order_of_the_rows():
    assert flat(BatchOrder([1] * 10, 4, shuffle=False)) == list(range(10))


def test_a_mixture_has_its_shares_and_sweeps_its_sources():
    # 60 + 20 rows in the ratio 1 : 3, so 20 of the first (a third) and 60 of the second (three times each).
    order = BatchOrder([1] * 80, 8, shares=([60, 20], [1.0, 3.0]))
    seen = Counter()
    for epoch in range(3):
        order.set_epoch(epoch)
        rows = flat(order)
        assert [sum(row < 60 for row in rows), sum(row >= 60 for row in rows)] == [20, 60]
        seen.update(rows)
    assert {seen[row] for row in range(60)} == {1}
    assert {seen[row] for row in range(60, 80)} == {9}


def test_fewer_rows_than_ranks_is_an_error_before_the_first_step():
    with pytest.raises(ValueError, match="3 rows for 4 ranks"):
        BatchOrder([1] * 3, num_replicas=4)


def test_a_rank_is_one_of_them():
    with pytest.raises(ValueError, match="rank 2 is none of 2"):
        BatchOrder([1] * 3, num_replicas=2, rank=2)


repeats = st.integers(1, 4)


@given(lengths, how, st.integers(1, 3), repeats, st.integers(0, 3))
def test_each_rank_has_each_of_its_batches_repeated(lengths, how, world, repeat, epoch):
    once = ranks(lengths, world, epoch, **how)
    found = ranks(lengths, world, epoch, repeat=repeat, **how)
    assert found == [[batch for batch in mine for _ in range(repeat)] for mine in once]
    order = BatchOrder(lengths, num_replicas=world, repeat=repeat, **how)
    order.set_epoch(epoch)
    assert len(order) == len(found[0])


@given(lengths, how, st.integers(1, 3), repeats, st.lists(st.integers(0, 9), min_size=1, max_size=4))
def test_a_run_of_repeated_batches_goes_on_where_it_stopped(lengths, how, world, repeat, stops):
    """Stopped any number of times, in the middle of repeats too, every rank sees what it would have seen."""
    for rank in range(world):
        whole = BatchOrder(lengths, num_replicas=world, rank=rank, repeat=repeat, **how)
        expected, seen = list(whole), []
        place = (0, 0)
        for stop in stops:
            order = BatchOrder(lengths, num_replicas=world, rank=rank, repeat=repeat, **how)
            order.start_at(0, *place)
            part = list(order)[:stop]
            seen += part
            place = (order.position(len(part)), order.repeats_done(len(part)))
        assert seen == expected[: len(seen)]
        order.start_at(0, *place)
        assert seen + list(order) == expected


def test_positions_count_rows_that_are_done_with():
    order = BatchOrder([1] * 20, 3, repeat=4)
    assert [(order.position(n), order.repeats_done(n)) for n in (0, 1, 3, 4, 9)] == [
        (0, 0),
        (0, 1),
        (0, 3),
        (3, 0),
        (6, 1),
    ]
    order.start_at(0, 6, 1)
    assert [(order.position(n), order.repeats_done(n)) for n in (0, 2, 3)] == [(6, 1), (6, 3), (9, 0)]


def test_repeats_done_go_on_with_other_ranks_and_other_repeats():
    # Two ranks stopped after one of three times of batches 0 and 1; one rank goes on.
    order = BatchOrder([1] * 8, 2, shuffle=False, num_replicas=2, repeat=3)
    place = order.position(4), order.repeats_done(4)
    assert place == (4, 1)
    (alone,) = ranks([1] * 8, 1, batch_size=2, shuffle=False, repeat=3)
    other = BatchOrder([1] * 8, 2, shuffle=False, repeat=3)
    other.start_at(0, *place)
    assert list(other) == alone[7:]
    fewer = BatchOrder([1] * 8, 2, shuffle=False, repeat=1)
    fewer.start_at(0, *place)
    assert list(fewer) == [[6, 7]]


def test_a_batch_is_given_at_least_once():
    with pytest.raises(ValueError, match="repeat is 0"):
        BatchOrder([1] * 3, repeat=0)
