"""Shipped configurations: listed with what they are for, found by name."""

from pathlib import Path

import pytest

from lit_align.__main__ import main
from lit_align.cli.errors import CommandLineError
from lit_align.cli.recipes import find_config, shipped, summary


def test_recipes_lists_each_with_its_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(shipped())
    for line, (name, path) in zip(lines, shipped().items(), strict=True):
        assert line.startswith(name)
        assert summary(path) in line
        assert summary(path).startswith("lit-align ")


def test_find_with_and_without_ending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_config("dpo.yaml") == find_config("dpo") == shipped()["dpo.yaml"]
    with pytest.raises(CommandLineError, match="no such file here"):
        find_config("other.yaml")
    with pytest.raises(CommandLineError, match="is a directory"):
        find_config(str(tmp_path))
