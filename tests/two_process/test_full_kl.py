"""Processes whose documents differ in length gather the same weights in the same order."""

import pytest
import torch


@pytest.mark.slow
def test_one_process_has_a_document_longer_than_the_window(forked, tmp_path):
    for name, count in (("whole", 1), ("sharded", 2)):
        forked("full_kl", count, tmp_path, count, tmp_path / name)
    for rank in range(2):
        sharded, whole = (
            torch.load(tmp_path / f"{name}.{rank}", weights_only=True) for name in ("sharded", "whole")
        )
        assert whole.max() > 1e-3
        torch.testing.assert_close(sharded, whole, rtol=1e-4, atol=1e-5)
