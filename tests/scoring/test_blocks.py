"""Blocks of whole trees."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_align.batches import Forest
from lit_align.scoring.blocks import blocks


def forest(count: int, seed: int, completions: int) -> Forest:
    generator = torch.Generator().manual_seed(seed)

    def ids(low: int, high: int) -> list[int]:
        length = int(torch.randint(low, high, (1,), generator=generator))
        return torch.randint(0, 29, (length,), generator=generator).tolist()

    # Empty prompts too: the first token of their completions weighs nothing.
    return Forest.from_lists(
        [ids(0, 4) for _ in range(count)], [[ids(1, 9) for _ in range(completions)] for _ in range(count)]
    )


@settings(max_examples=30)
@given(
    count=st.integers(1, 6), completions=st.integers(1, 4), rows=st.integers(1, 40), seed=st.integers(0, 99)
)
def test_blocks_are_a_partition_in_order(count, completions, rows, seed):
    batch = forest(count, seed, completions)
    scored = batch.weights.nonzero().squeeze(1)
    parts = blocks(batch, scored, rows)
    assert [r for part in parts for r in part.rows] == list(range(len(scored)))
    ids = torch.cat([part.forest.completion_ids[part.places] for part in parts])
    assert torch.equal(ids, batch.completion_ids[scored])
    assert sum(part.forest.num_prompts for part in parts) == count
    assert all(len(part.rows) <= rows or part.forest.num_prompts == 1 for part in parts)
