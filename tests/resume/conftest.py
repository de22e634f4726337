"""Runs in processes of their own, forked from one server so that each costs less than a second."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

SERVER = Path(__file__).with_name("runs.py")


class Runs:
    """Sends specifications to the server (see ``runs.py``)."""

    def __init__(self, process: subprocess.Popen[str], root: Path) -> None:
        self.process, self.root, self.count = process, root, 0

    def __call__(self, **spec: Any) -> "Result":
        self.count += 1
        spec = {"out": str(self.root / str(self.count)), **spec}
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(spec) + "\n")
        self.process.stdin.flush()
        return Result(int(self.process.stdout.readline()), Path(spec["out"]))

    def ends(self, **spec: Any) -> "Result":
        """A run that must end well."""
        result = self(**spec)
        assert result.code == 0, result.log
        return result

    def killed(self, at: int, **spec: Any) -> "Result":
        """A run killed before the micro-batch after the ``at``-th."""
        result = self(kill_at=at, **spec)
        assert result.code == -9, result.log
        return result


class Result:
    def __init__(self, code: int, out: Path) -> None:
        self.code, self.out = code, out

    @property
    def log(self) -> str:
        return (self.out / "log.txt").read_text()[-4000:]

    @property
    def final(self) -> dict[str, Any]:
        return json.loads((self.out / "result.json").read_text())

    @property
    def batches(self) -> list[list[Any]]:
        """``[epoch, batch in the epoch, rows, optimiser steps before]`` of each micro-batch."""
        return [json.loads(line) for line in (self.out / "batches.jsonl").read_text().splitlines()]

    @property
    def last(self) -> str | None:
        found = sorted((self.out / "checkpoints").glob("*.ckpt"), key=os.path.getmtime)
        return str(found[-1]) if found else None


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """``runs(algorithm="sft", trainer={...})`` trains in a process of its own."""
    with subprocess.Popen(
        [sys.executable, str(SERVER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        text=True,
    ) as process:
        yield Runs(process, tmp_path_factory.mktemp("runs"))
        assert process.stdin is not None
        process.stdin.close()
