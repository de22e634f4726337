"""Distributed runs over gloo, forked from one server."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

SERVER = Path(__file__).with_name("ranks.py")


@pytest.fixture(scope="session")
def forked() -> Iterator[Callable[..., None]]:
    """``forked("step", 2, folder, "sft", ...)`` runs ``step.py`` in two processes, which must end well."""
    env = {
        k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "LOCAL_RANK", "WORLD", "MASTER"))
    }
    with subprocess.Popen(
        [sys.executable, str(SERVER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=env | {"OMP_NUM_THREADS": "1"},
        text=True,
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None

        def run(script: str, processes: int, folder: Path, *arguments: object) -> None:
            log = folder / "log.txt"
            request = {"script": script, "processes": processes, "log": str(log)}
            server.stdin.write(json.dumps({**request, "arguments": [str(a) for a in arguments]}) + "\n")  # type: ignore[union-attr]
            server.stdin.flush()  # type: ignore[union-attr]
            statuses = json.loads(server.stdout.readline())  # type: ignore[union-attr]
            assert statuses == [0] * processes, log.read_text()[-3000:]

        yield run
        server.stdin.close()


@pytest.fixture
def run(forked, tmp_path) -> Callable[..., dict[str, Any]]:
    """``run("sft", "fsdp2", 2, out)`` runs ``sharded.py`` and gives what its first process found."""
    import torch

    def one(algorithm: str, strategy: str, processes: int, out: Path, checkpoint: Path | None = None) -> Any:
        given = [] if checkpoint is None else [checkpoint]
        forked("sharded", processes, tmp_path, algorithm, strategy, processes, out, *given)
        return torch.load(out, weights_only=True)

    return one
