"""A mark that any payload would leave, and a file that none may touch."""

from collections.abc import Iterator
from pathlib import Path

import pytest


class Marks:
    """Where payloads would show that they ran, or that they got out."""

    def __init__(self, folder: Path) -> None:
        #: Made by a payload that is run.
        self.executed = folder / "executed"
        #: A file outside of every run, which a payload would write over.
        self.victim = folder / "victim.txt"
        self.victim.write_text("as it was")

    @property
    def shell(self) -> str:
        return f"touch {self.executed}"

    def check(self) -> None:
        assert not self.executed.exists(), "the payload was run"
        assert self.victim.read_text() == "as it was", "the payload wrote outside of the run"


@pytest.fixture
def marks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Marks]:
    found = Marks(tmp_path_factory.mktemp("marks"))
    yield found
    found.check()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a module that leaves a mark when it is imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIT_ALIGN_CACHE", str(tmp_path / "cache"))
    return tmp_path
