"""The cut into chunks."""

import pytest

from lit_align.callbacks.sharing import my_chunks


@pytest.mark.parametrize("world", [1, 2, 3, 7])
@pytest.mark.parametrize("count", [1, 4, 9])
def test_every_row_once_and_equally_many_chunks(count: int, world: int) -> None:
    shares = [my_chunks(count, 2, rank, world) for rank in range(world)]
    assert len({len(share) for share in shares}) == 1
    counted = sorted(i for share in shares for rows, counts in share if counts for i in rows)
    assert counted == list(range(count))
    alone = {tuple(rows) for rows, _ in my_chunks(count, 2, 0, 1)}
    assert {tuple(rows) for share in shares for rows, _ in share} == alone
