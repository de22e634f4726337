"""FSDP2 over two gloo processes gives the losses and the weights of one process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("sharded.py")


def run(algorithm: str, strategy: str, processes: int, out: Path, checkpoint: Path | None = None) -> dict:
    command = [sys.executable, str(SCRIPT), algorithm, strategy, str(processes), str(out)]
    command += [str(checkpoint)] if checkpoint else []
    # Rank 0 starts the other process by itself and must not think that it was started by someone.
    env = {
        k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "LOCAL_RANK", "WORLD", "MASTER"))
    }
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(out, weights_only=True)


def assert_equal(one: dict, two: dict) -> None:
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-6, abs=1e-6)
    assert one["weights"].keys() == two["weights"].keys()
    for name, weight in one["weights"].items():
        assert float((weight - two["weights"][name]).abs().max()) <= 1e-6, name


@pytest.mark.slow
@pytest.mark.parametrize(
    "algorithm",
    [
        "sft",
        "sft_lora",
        "reward",
        "reward_lora",
        "dpo_copy",
        "dpo_lora_off",
        "dpo_lora_copy",
        "actor_critic",
        "actor_critic_lora",
        "critic",
        "value_adapter",
    ],
)
def test_sharded_equals_one_process(algorithm, tmp_path):
    one = run(algorithm, "auto", 1, tmp_path / "one.pt")
    two = run(algorithm, "fsdp2", 2, tmp_path / "two.pt")
    assert one["shards"] == 0
    assert two["shards"] > 0
    # It learns, so that equal is not equal to nothing.
    assert one["losses"][0] != pytest.approx(one["losses"][-1], rel=1e-5)
    assert_equal(one, two)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["sft", "dpo_lora_off"])
def test_a_sharded_run_goes_on_with_any_strategy(algorithm, tmp_path):
    run(algorithm, "fsdp2", 2, tmp_path / "first.pt")
    checkpoint = tmp_path / "first.ckpt"
    sharded = run(algorithm, "fsdp2", 2, tmp_path / "sharded.pt", checkpoint)
    ddp = run(algorithm, "ddp", 2, tmp_path / "ddp.pt", checkpoint)
    alone = run(algorithm, "auto", 1, tmp_path / "alone.pt", checkpoint)
    assert len(alone["losses"]) == 3
    assert_equal(alone, sharded)
    assert_equal(alone, ddp)
