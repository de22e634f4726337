"""Rows to batches. Public, so that any loader can use them."""

import json
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from lit_align.batches import Forest
from lit_align.datamodules.tokenize import Row


def collate(rows: Sequence[Row]) -> Forest:
    """Rows to the ragged batch.

    Args:
        rows: tokenised rows, alike in their columns.

    Returns:
        A forest with one prompt per row, in the order of the rows; a number that goes with a row
        becomes a ``[P]`` float32 prompt column. Rows that were kept as they were read are its ``records``.

    >>> batch = collate([Row(7, [1, 2], [[3, 4], [5]], [[1.0, 1.0], [1.0]], {"margin": 0.5})])
    >>> batch.rows, batch.completion_lengths, batch.prompt_columns["margin"].tolist()
    ((7,), (2, 1), [0.5])
    """
    names = list(rows[0].columns) if rows else []
    return Forest.from_lists(
        prompts=[row.prompt for row in rows],
        completions=[row.completions for row in rows],
        weights=[row.weights for row in rows],
        rows=[row.row for row in rows],
        prompt_columns={name: torch.tensor([row.columns[name] for row in rows]) for name in names},
        records=[json.loads(row.record) for row in rows if row.record is not None],
    )


class PaddedCollator:
    """Rows to rectangles, for models and code that want them.

    Args:
        pad_id: token that fills up; nothing is ever told from it.
        side: where to fill up.
    """

    def __init__(self, pad_id: int, side: Literal["left", "right"] = "right") -> None:
        self.pad_id = pad_id
        self.side: Literal["left", "right"] = side

    def __call__(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """Pad a batch.

        Args:
            rows: tokenised rows, alike in their columns.

        Returns:
            ``input_ids``, ``attention_mask``, ``labels`` (-100 where nothing is learned) and ``weights``,
            each ``[C, longest]`` (a pair gives two neighbours, chosen first); ``rows`` ``[C]``; and the rows'
            numbers as ``[P]`` columns.
        """
        forest = collate(rows)
        batch = forest.padded(self.pad_id, self.side)
        weights = torch.zeros(batch["input_ids"].shape)
        for i, (prompt, completion, mass) in enumerate(forest.sequences()):
            length = len(prompt) + len(completion)
            start = weights.shape[1] - length if self.side == "left" else 0
            weights[i, start + len(prompt) : start + length] = torch.tensor(mass)
        numbers = torch.tensor([forest.rows[parent] for parent in forest.parents])
        return {**batch, "weights": weights, "rows": numbers, **forest.prompt_columns}
