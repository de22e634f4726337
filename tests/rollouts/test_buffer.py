"""The buffer hands out every minibatch once, and a checkpoint of it goes on where it was."""

import io

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_align.batches import Forest
from lit_align.rollouts.buffer import RolloutBuffer, concatenate, merge_states, minibatch_plan


def rollout(prompts, first_row=0):
    """Groups of two; each token column tells its token apart from all others."""
    ids = [[10 + p, 11] for p in range(prompts)]
    answers = [[[20 + first_row + p, 2], [30 + first_row + p]] for p in range(prompts)]
    rows = list(range(first_row, first_row + prompts))
    forest = Forest.from_lists(ids, answers, rows=rows)
    return forest.with_token_column("advantages", forest.completion_ids.float())


@given(
    prompts=st.integers(1, 20),
    epochs=st.integers(1, 3),
    minibatches=st.integers(1, 5),
    seed=st.integers(0, 9),
)
def test_each_pass_takes_every_prompt_once(prompts, epochs, minibatches, seed):
    if prompts < minibatches:
        with pytest.raises(ValueError, match="cannot be cut"):
            minibatch_plan(prompts, epochs=epochs, minibatches=minibatches, seed=seed)
        return
    plan = minibatch_plan(prompts, epochs=epochs, minibatches=minibatches, seed=seed)
    assert len(plan) == epochs * minibatches
    for epoch in range(epochs):
        own = plan[epoch * minibatches : (epoch + 1) * minibatches]
        assert sorted(p for part in own for p in part) == list(range(prompts))
        assert max(map(len, own)) - min(map(len, own)) <= 1
    assert plan == minibatch_plan(prompts, epochs=epochs, minibatches=minibatches, seed=seed)


def test_passes_have_orders_of_their_own():
    plan = minibatch_plan(12, epochs=2, minibatches=3, seed=0)
    assert plan[:3] != plan[3:]
    assert plan != minibatch_plan(12, epochs=2, minibatches=3, seed=1)


def test_minibatches_come_in_the_order_of_the_plan():
    buffer = RolloutBuffer()
    assert buffer.empty
    buffer.fill(rollout(4), ((2, 0), (1, 3)), [0, 1, 2, 3])
    assert [buffer.take().rows, buffer.take().rows] == [(2, 0), (1, 3)]
    assert buffer.empty
    with pytest.raises(RuntimeError, match="empty"):
        buffer.take()


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_a_checkpoint_goes_on_where_it_was():
    buffer = RolloutBuffer()
    buffer.fill(rollout(4), ((0, 1), (2, 3), (3, 0)), [0, 1, 2, 3])
    buffer.take()
    buffer.updates, buffer.stopped = 1, True
    other = RolloutBuffer()
    other.load_state_dict(through_a_file(buffer.state_dict()), torch.device("cpu"))
    assert (other.taken, other.updates, other.stopped, other.source) == (1, 1, True, (0, 1, 2, 3))
    mine, theirs = buffer.take(), other.take()
    assert mine.rows == theirs.rows == (2, 3)
    assert torch.equal(mine.token_columns["advantages"], theirs.token_columns["advantages"])


def test_minibatches_whose_gradients_are_in_no_weight_come_again():
    buffer = RolloutBuffer()
    buffer.fill(rollout(4), ((0,), (1,), (2,), (3,)), [0])
    for _ in range(3):
        buffer.take()
    other = RolloutBuffer()
    other.load_state_dict(buffer.state_dict(give_back=1), torch.device("cpu"))
    assert other.take().rows == (2,)


def test_an_empty_buffer_saves_nothing_and_loads_as_empty():
    buffer = RolloutBuffer()
    buffer.fill(rollout(1), ((0,),), [0])
    buffer.take()
    assert buffer.state_dict() == {}
    buffer.load_state_dict({}, torch.device("cpu"))
    assert buffer.empty
    assert buffer.experience is None


def states_of_two_processes():
    states = []
    for rank in range(2):
        buffer = RolloutBuffer()
        buffer.fill(rollout(4, first_row=4 * rank), ((0, 2), (1, 3)), range(4 * rank, 4 * rank + 4))
        states.append(buffer.state_dict())
    return states


def rows_and_sums(states, k):
    rows, total = set(), 0.0
    for state in states:
        buffer = RolloutBuffer()
        buffer.load_state_dict(state, torch.device("cpu"))
        for _ in range(k):
            buffer.take()
        part = buffer.take()
        rows |= set(part.rows)
        total += part.token_columns["advantages"].sum().item()
    return rows, total


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("k", [0, 1])
def test_other_processes_take_the_same_minibatches_together(world, k):
    before = states_of_two_processes()
    after = merge_states(before, world)
    assert len(after) == world
    assert rows_and_sums(after, k) == rows_and_sums(before, k)


def test_too_few_prompts_for_the_processes_are_refused():
    with pytest.raises(ValueError, match="as many processes as before"):
        merge_states(states_of_two_processes(), 5)


def test_empty_buffers_are_empty_on_any_number_of_processes():
    assert merge_states([{}, {}], 3) == [{}, {}, {}]


def test_concatenated_forests_keep_their_order_and_columns():
    both = concatenate([rollout(2), rollout(3, first_row=2)])
    assert both.rows == (0, 1, 2, 3, 4)
    assert both.parents == (0, 0, 1, 1, 2, 2, 3, 3, 4, 4)
    assert torch.equal(both.token_columns["advantages"], both.completion_ids.float())
    with pytest.raises(ValueError, match="different token columns"):
        concatenate([rollout(1), rollout(1).with_token_column("values", torch.zeros(3))])
