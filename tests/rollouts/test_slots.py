"""Slots against the obvious: each row attends to its own prompt and its own tokens, and to nothing else."""

import pytest
import torch

from lit_align.rollouts.slots import PromptReader, Slots

HEADS, SHARED, SIZE, LAYERS = 4, 2, 3, 2
CPU = torch.device("cpu")


class Reference:
    """The rows one by one, as lists of keys and values."""

    def __init__(self) -> None:
        self.rows: list[list[tuple[torch.Tensor, torch.Tensor]]] = []

    def attend(self, row, query):
        keys = torch.stack([key for key, _ in self.rows[row]], dim=1).repeat_interleave(2, 0)
        values = torch.stack([value for _, value in self.rows[row]], dim=1).repeat_interleave(2, 0)
        weights = (query[:, None] * keys).sum(-1).mul(0.7).softmax(-1)
        return (weights[..., None] * values).sum(1)


def random(*shape):
    return torch.randn(*shape)


@pytest.mark.parametrize("seed", range(3))
def test_a_life_of_slots(seed):
    torch.manual_seed(seed)
    slots, reference = Slots(5, 20, CPU), Reference()
    reader = PromptReader()
    keys, values = random(1, SHARED, 9, SIZE), random(1, SHARED, 9, SIZE)
    for layer in range(LAYERS):
        assert reader.update(keys + layer, values - layer, layer)[0].shape == keys.shape
    spans = [(0, 4), (4, 5), (5, 9)]

    def fill(span, count):
        slots.fill(reader.states(*span, torch.zeros(1)), count)
        prompt = [(keys[0, :, t] + 1, values[0, :, t] - 1) for t in range(*span)]  # of the second layer
        reference.rows += [list(prompt) for _ in range(count)]

    fill(spans[0], 2)
    fill(spans[1], 1)
    fill(spans[2], 2)
    for alive in ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4], [1, 2, 4], [1, 2], [0]):
        order = slots.keep(alive)
        assert sorted(order) == alive
        reference.rows = [reference.rows[slot] for slot in order]
        if len(alive) == 2:
            fill(spans[1], 2)
        rows = len(reference.rows)
        assert slots.advance().tolist() == [len(row) for row in reference.rows]
        query, key, value = (random(rows, n, 1, SIZE) for n in (HEADS, SHARED, SHARED))
        for row in range(rows):
            reference.rows[row].append((key[row, :, 0], value[row, :, 0]))
        found = slots.attend(query, *slots.update(key, value, 1), 0.7)
        assert found.shape == (rows, 1, HEADS, SIZE)
        for row in range(rows):
            torch.testing.assert_close(found[row, 0], reference.attend(row, query[row, :, 0]))


def test_rows_of_one_length_need_no_mask():
    slots, reader = Slots(2, 8, CPU), PromptReader()
    reader.update(random(1, SHARED, 3, SIZE), random(1, SHARED, 3, SIZE), 0)
    slots.fill(reader.states(0, 3, torch.zeros(1)), 2)
    slots.advance()
    assert slots._mask is None
    assert slots.get_seq_length() == 3
