"""Rows held out for validation, chosen by their content."""

import hashlib

from lit_align.datamodules.bad_rows import DataError
from lit_align.datamodules.table import TokenTable
from lit_align.datamodules.tokenize import Row


def hold_out(table: TokenTable, fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Split rows into those to train on and those held out.

    Rows with the same prompt stay together, so that nothing held out has been seen; where that leaves
    no split (all prompts are one), only equal rows do. The choice depends on the seed and the content, not
    on the order of the rows.

    Args:
        table: the rows.
        fraction: about how many of them are held out, at least one.
        seed: another seed, another choice.

    Returns:
        Indices to train on, and indices held out, both in order.

    Raises:
        DataError: there are too few different rows.
    """
    wanted = max(1, round(fraction * len(table)))
    rows = [table[i] for i in range(len(table))]
    for key in (_prompt_key, _row_key):
        groups: dict[bytes, list[int]] = {}
        for i, row in enumerate(rows):
            groups.setdefault(_digest(seed, key(row)), []).append(i)
        held: list[int] = []
        for _, members in sorted(groups.items()):
            if len(held) + len(members) <= wanted:
                held += members
        if held and len(held) < len(table):
            chosen = set(held)
            return [i for i in range(len(table)) if i not in chosen], sorted(held)
    raise DataError(
        f"val_fraction={fraction} of {len(table)} rows, of which {len(groups)} differ, leaves no split; "
        "give val a source of its own"
    )


def _prompt_key(row: Row) -> object:
    return row.prompt or row.completions


def _row_key(row: Row) -> object:
    return (row.prompt, row.completions)


def _digest(seed: int, key: object) -> bytes:
    return hashlib.sha256(repr((seed, key)).encode()).digest()
