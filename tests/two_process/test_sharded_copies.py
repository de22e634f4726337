"""A copy of a model that processes share is shared by all of them."""

import json

import pytest


@pytest.mark.slow
@pytest.mark.parametrize(("data", "tensor"), [(1, 2), (2, 1), (2, 2)])
def test_each_process_holds_its_part_of_the_copy_alone(forked, data, tensor, tmp_path):
    """All of llama's weights here have first dimensions that four processes share evenly."""
    count = data * tensor
    forked("sharded_copies", count, tmp_path, tmp_path, data, tensor)
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(count)]
    assert [one["held"] for one in found] == [one["all"] / count for one in found]
