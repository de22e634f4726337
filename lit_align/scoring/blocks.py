"""A forest in blocks of whole trees: what has to be scored before a loss of it can be taken."""

from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from lit_align.batches import Forest


class Block(NamedTuple):
    """Trees that are scored together.

    Attributes:
        rows: the scored tokens of the block, among the ``M`` of the batch.
        forest: the trees.
        places: ``[rows]`` where the scored tokens stand among the completion tokens of ``forest``.
    """

    rows: range
    forest: Forest
    places: Tensor


def blocks(batch: Forest, scored: Tensor, rows: int, whole: bool = False) -> list[Block]:
    """Cut a forest into blocks of whole trees.

    Args:
        batch: the forest.
        scored: ``[M]`` index of its scored tokens, ascending.
        rows: scored tokens of a block, at most, unless a tree alone has more.
        whole: one block for all, for a loss that couples the rows of a batch.
    """
    if whole or len(scored) <= rows:
        return [Block(range(len(scored)), batch, scored)]
    tokens = [0] * batch.num_prompts
    for length, parent in zip(batch.completion_lengths, batch.parents, strict=True):
        tokens[parent] += length
    ends = list(accumulate(tokens))
    # How many scored tokens stand before the end of each prompt's completions.
    upto = torch.searchsorted(scored, torch.tensor(ends, device=scored.device)).tolist()
    found: list[Block] = []
    first = start = 0
    for p in range(batch.num_prompts):
        if p + 1 < batch.num_prompts and upto[p + 1] - start <= rows:
            continue
        offset = ends[first] - tokens[first]
        forest = batch.select(range(first, p + 1))
        found.append(Block(range(start, upto[p]), forest, scored[start : upto[p]] - offset))
        first, start = p + 1, upto[p]
    return found
