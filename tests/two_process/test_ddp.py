"""Two processes over gloo give the gradients and the metrics of one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

STEP = Path(__file__).with_name("step.py")


def run(algorithm: str, processes: int, accumulation: int, out: Path) -> dict:
    command = [sys.executable, str(STEP), algorithm, str(processes), str(accumulation), str(out)]
    # Rank 0 starts the other process by itself and must not think that it was started by someone.
    env = {
        k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "LOCAL_RANK", "WORLD", "MASTER"))
    }
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(out, weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["sft", "reward", "dpo", "dpo_lora"])
def test_two_processes_equal_one(algorithm, tmp_path):
    one = run(algorithm, 1, 1, tmp_path / "one.pt")
    two = run(algorithm, 2, 2, tmp_path / "two.pt")
    largest = max(1.0, max(float(g.abs().max()) for g in one["grads"].values()))
    assert one["grads"].keys() == two["grads"].keys()
    for name, grad in one["grads"].items():
        other = two["grads"][name]
        assert float((grad - other).abs().max()) <= 1e-6 * largest, name
    for name, value in one["metrics"].items():
        assert two["metrics"][name] == pytest.approx(value, rel=1e-5, abs=1e-6), name
