"""Callbacks under two processes say what they say under one."""

import json
from pathlib import Path
from typing import Any

import pytest


def run(
    forked: Any, strategy: str, processes: int, folder: Path
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    folder.mkdir()
    forked("callbacks", processes, folder, strategy, processes, folder / "metrics.json")
    lines = (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    return json.loads((folder / "metrics.json").read_text()), [json.loads(line) for line in lines]


@pytest.mark.slow
def test_two_processes_equal_one(forked: Any, tmp_path: Path) -> None:
    metrics, samples = run(forked, "ddp", 1, tmp_path / "one")
    assert len(samples) == 2 * 2 * 5
    assert any(sample["before"] != sample["completion"] for sample in samples)
    assert all(metrics[f"{name}/k3"] > 1e-3 for name in ("train/given", "train/sampled", "train/batch"))
    for strategy in ("ddp", "fsdp2"):
        found, written = run(forked, strategy, 2, tmp_path / strategy)
        assert written == samples
        # Under FSDP2 only references that need no second copy of the model.
        assert len(found) >= (8 if strategy == "fsdp2" else len(metrics))
        for name, value in found.items():
            assert value == pytest.approx(metrics[name], rel=1e-4, abs=1e-6), name
