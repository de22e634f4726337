"""Training sharded over two processes, going on with one, and exporting: three lines on the command line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

FIT = [
    *("fit", "--config", "dpo_lora.yaml", "--ckpt_path", "last", "--trainer.accelerator", "cpu"),
    *("--data.limit", "32", "--data.batch_size", "4", "--trainer.enable_model_summary", "false"),
]
TWO = ["--trainer.strategy", "fsdp2", "--trainer.devices", "2"]


def lit_align(folder: Path, *arguments: str) -> str:
    env = {
        k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "LOCAL_RANK", "WORLD", "MASTER"))
    }
    done = subprocess.run(
        [sys.executable, "-m", "lit_align", *arguments],
        cwd=folder,
        env=env | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout + done.stderr


@pytest.mark.slow
def test_sharded_then_alone_then_exported(tmp_path: Path) -> None:
    lit_align(tmp_path, *FIT, *TWO, "--trainer.max_steps", "2")
    first = tmp_path / "runs/dpo_lora/1"
    assert (first / "checkpoints/last.ckpt/index.json").is_file()
    lit_align(tmp_path, "export", str(first), "--output", str(tmp_path / "again"))
    # What the run wrote at its end, and what is made of its sharded checkpoint.
    gathered = load_file(first / "export/adapter_model.safetensors")
    exported = load_file(tmp_path / "again/adapter_model.safetensors")
    assert gathered.keys() == exported.keys()
    assert all(bool((t == exported[name]).all()) for name, t in gathered.items())
    lit_align(tmp_path, *FIT, "--trainer.max_steps", "4")
    second = tmp_path / "runs/dpo_lora/2"
    assert yaml.safe_load((second / "config.yaml").read_text())["ckpt_path"].startswith("runs/dpo_lora/1/")
    assert (second / "checkpoints/last.ckpt").is_file()
    merged = tmp_path / "merged"
    lit_align(tmp_path, "export", str(second), "--merge", "--output", str(merged))
    assert load_file(merged / "model.safetensors")
