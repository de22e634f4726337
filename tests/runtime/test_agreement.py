"""One process agrees with itself; several are tested in tests/two_process/test_failures.py."""

import pytest
import torch

from lit_align.runtime.agreement import gathered, is_zero, of_zero, together


def test_alone():
    assert is_zero()
    assert of_zero("mine") == "mine"
    assert gathered(torch.ones(2)).tolist() == [1, 1]
    with together("it did nothing"):
        pass


def test_what_fails_alone_is_raised_as_it_is():
    with pytest.raises(KeyError, match="x"), together("it looked up x"):
        raise KeyError("x")
