"""``offline: true``, or the Hub's own variable: no name is looked up anywhere but here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

WATCHED = """
import json, socket, sys
tried = []
def refuse(*arguments, **_):
    tried.append(repr(arguments[:2]))
    raise OSError("the test has no network")
socket.socket.connect = socket.getaddrinfo = refuse
from lit_align.__main__ import main
print(json.dumps([main(json.loads(sys.argv[1])), tried]))
"""


def watched(folder: Path, *arguments: str, **variables: str) -> tuple[int, list[str], str]:
    """The status of a command, the addresses that it asks for, and what it says."""
    env = {k: v for k, v in os.environ.items() if "OFFLINE" not in k}
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, json.dumps(arguments)],
        cwd=folder,
        env=env
        | {"HF_HOME": str(folder / "hub"), "HF_HUB_ETAG_TIMEOUT": "1", "OMP_NUM_THREADS": "1"}
        | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    status, found = json.loads(done.stdout.splitlines()[-1])
    return status, found, done.stderr


FIT = ("fit", "--config", "sft.yaml", "--data.limit", "4", "--data.cache", "false")


@pytest.mark.slow
def test_without_it_the_hub_is_asked(tmp_path: Path) -> None:
    """So that the other tests mean something."""
    _, found, _ = watched(tmp_path, *FIT, "--model.policy", "someone/model")
    assert found


@pytest.mark.slow
@pytest.mark.parametrize("how", ["option", "file", "our variable", "the Hub's variable"])
def test_a_model_by_its_name(tmp_path: Path, how: str) -> None:
    (tmp_path / "offline.yaml").write_text("offline: true\n")
    arguments = {"option": ["--offline"], "file": ["--config", "offline.yaml"]}.get(how, [])
    name = {"our variable": "LIT_ALIGN_OFFLINE", "the Hub's variable": "HF_HUB_OFFLINE"}.get(how)
    variables = {name: "1" if name == "HF_HUB_OFFLINE" else "true"} if name else {}
    status, found, said = watched(tmp_path, *FIT, "--model.policy", "someone/model", *arguments, **variables)
    assert (status, found) == (1, [])
    assert "someone/model" in said


@pytest.mark.slow
def test_data_by_their_name(tmp_path: Path) -> None:
    status, found, said = watched(tmp_path, *FIT, "--data.train", "someone/data", "--offline", "true")
    assert (status, found) == (1, [])
    assert "someone/data" in said


def test_a_command_without_a_trainer(tmp_path: Path) -> None:
    status, found, said = watched(tmp_path, "generate", "someone/model", "--prompt", "Hello", "--offline")
    assert (status, found) == (1, [])
    assert "someone/model" in said


@pytest.mark.slow
def test_an_ordinary_run_asks_nobody(tmp_path: Path) -> None:
    """No telemetry, no look for a newer version: with shipped names, nothing is reached for."""
    status, found, said = watched(tmp_path, *FIT, "--trainer.max_steps", "1")
    assert (status, found) == (0, []), said
