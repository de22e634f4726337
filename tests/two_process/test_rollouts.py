"""Sharded policies write what whole ones write, and nobody waits for a process that has finished."""

import pytest
import torch


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["native", "transformers"])
@pytest.mark.parametrize("processes", [2, 3])
def test_unequal_rollouts_under_fsdp2(kind, processes, forked, tmp_path):
    for name, count in (("whole", 1), ("sharded", processes)):
        forked("rollouts", count, tmp_path, kind, count, tmp_path / name)
    whole = torch.load(tmp_path / "whole.0", weights_only=True)
    for rank in range(processes):
        sharded = torch.load(tmp_path / f"sharded.{rank}", weights_only=True)
        assert sharded
        for name, value in sharded.items():
            torch.testing.assert_close(value, whole[name], rtol=1e-4, atol=1e-5)
