"""Callbacks under two processes say what they say under one."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("callbacks.py")


def run(strategy: str, processes: int, folder: Path) -> tuple[dict[str, float], list[dict[str, Any]]]:
    folder.mkdir()
    command = [sys.executable, str(SCRIPT), strategy, str(processes), str(folder / "metrics.json")]
    # Rank 0 starts the other process by itself and must not think that it was started by someone.
    env = {
        k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "LOCAL_RANK", "WORLD", "MASTER"))
    }
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    return json.loads((folder / "metrics.json").read_text()), [json.loads(line) for line in lines]


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    metrics, samples = run("ddp", 1, tmp_path / "one")
    assert len(samples) == 2 * 2 * 5
    assert any(sample["before"] != sample["completion"] for sample in samples)
    assert all(metrics[f"{name}/k3"] > 1e-3 for name in ("train/given", "train/sampled", "train/batch"))
    for strategy in ("ddp", "fsdp2"):
        found, written = run(strategy, 2, tmp_path / strategy)
        assert written == samples
        # Under FSDP2 only references that need no second copy of the model.
        assert len(found) >= (8 if strategy == "fsdp2" else len(metrics))
        for name, value in found.items():
            assert value == pytest.approx(metrics[name], rel=1e-4, abs=1e-6), name
