import math

import pytest
import torch

from lit_align.runtime.health import all_finite, not_finite, total_norm


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_one_bad_number_anywhere_is_seen(bad, dtype):
    tensors = [torch.ones(3, 2), torch.ones(5, dtype=dtype), torch.ones(())]
    assert total_norm(tensors).item() == pytest.approx(math.sqrt(12), rel=1e-2)
    assert all_finite(tensors)
    tensors[1][4] = bad
    assert not bool(total_norm(tensors).isfinite())
    assert not all_finite(tensors)
    assert not_finite(zip("abc", tensors, strict=True)) == ["b"]


def test_large_numbers_are_numbers():
    # Their squares are not.
    assert not bool(total_norm([torch.full((4,), 3e38)]).isfinite())
    assert all_finite([torch.full((4,), 3e38)])


def test_nothing_is_finite():
    for nothing in ([], [torch.zeros(0)]):
        assert total_norm(nothing).item() == 0
        assert all_finite(nothing)
