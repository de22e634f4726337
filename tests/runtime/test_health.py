import math

import pytest
import torch

from lit_align.runtime.health import largest, not_finite


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_one_bad_number_anywhere_is_seen(bad, dtype):
    tensors = [torch.ones(3, 2), torch.ones(5, dtype=dtype), torch.ones(())]
    assert bool(largest(tensors).isfinite())
    tensors[1][4] = bad
    assert not bool(largest(tensors).isfinite())
    assert not_finite(zip("abc", tensors, strict=True)) == ["b"]


def test_large_numbers_are_numbers():
    # Their squares are not.
    assert largest([torch.full((4,), 3e38)]).item() == pytest.approx(3e38)


def test_nothing_is_finite():
    assert largest([]).item() == 0
    assert largest([torch.zeros(0)]).item() == 0
