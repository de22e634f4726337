"""``lit-align fit --ckpt_path last``: one line that starts a run and continues it exactly."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

COMMAND = [
    *(sys.executable, "-m", "lit_align", "fit", "--config", "sft.yaml", "--ckpt_path", "last"),
    *("--trainer.max_steps", "150"),
    *("--trainer.limit_val_batches", "1", "--data.batch_size", "2"),
]


def start(root: Path) -> subprocess.Popen:
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")} | {"OMP_NUM_THREADS": "1"}
    root.mkdir(exist_ok=True)
    with (root / "log.txt").open("a") as log:
        return subprocess.Popen(COMMAND, cwd=root, env=env, stdout=log, stderr=log)


@pytest.mark.slow
def test_terminated_and_started_again(tmp_path):
    assert start(tmp_path / "whole").wait(300) == 0
    part = start(tmp_path / "part")
    deadline = time.monotonic() + 200
    # Written when training begins; the signal comes some steps later, whichever.
    while not (tmp_path / "part/runs/sft/1/config.yaml").exists():
        assert time.monotonic() < deadline, (tmp_path / "part/log.txt").read_text()
        time.sleep(0.05)
    time.sleep(1.0)
    part.send_signal(signal.SIGTERM)
    code = part.wait(300)
    assert code in (143, -signal.SIGTERM), (tmp_path / "part/log.txt").read_text()
    assert start(tmp_path / "part").wait(300) == 0
    export = "export/model.safetensors"
    one, two = (
        load_file(tmp_path / "whole/runs/sft/1" / export),
        load_file(tmp_path / "part/runs/sft/2" / export),
    )
    assert one.keys() == two.keys()
    assert all(bool((one[name] == two[name]).all()) for name in one)
