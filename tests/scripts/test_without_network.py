"""Without a network: the commands run, and nothing tries to reach one."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "without_network.py"
FIT = ["fit", "--config", "sft.yaml", "--data.limit=8", "--data.cache=false", "--trainer.max_steps=1"]


def outside(*command: str, cwd: Path, offline: bool = False) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if "OFFLINE" not in k} | {"OMP_NUM_THREADS": "1"}
    # Nothing of what an earlier run may have fetched.
    env |= {"HF_HOME": str(cwd / "hub")}
    return subprocess.run(
        [sys.executable, str(SCRIPT), *command], cwd=cwd, env=env, capture_output=True, text=True, check=False
    )


@pytest.fixture(autouse=True)
def permitted(tmp_path: Path) -> None:
    if outside("true", cwd=tmp_path).returncode == 2:
        pytest.skip("the system permits no network namespace")


def test_the_network_is_gone_and_the_loopback_is_there(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        reach = f"import socket; socket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 5)"
        assert subprocess.run([sys.executable, "-c", reach], check=False).returncode == 0
        there = outside(sys.executable, "-c", reach, cwd=tmp_path)
    # Another machine's loopback, as it were: nobody listens there.
    assert "ConnectionRefusedError" in there.stderr
    names = outside(sys.executable, "-c", "import socket; print(socket.if_nameindex())", cwd=tmp_path)
    assert names.stdout.strip() == "[(1, 'lo')]"


def test_the_status_is_that_of_the_command(tmp_path: Path) -> None:
    assert outside(sys.executable, "-c", "raise SystemExit(7)", cwd=tmp_path).returncode == 7


@pytest.mark.slow
def test_a_run_over_two_processes(tmp_path: Path) -> None:
    two = ["--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.strategy=ddp"]
    done = outside(sys.executable, "-m", "lit_align", *FIT, *two, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "runs/sft/1/export/model.safetensors").is_file()
