"""Names from configurations and data stay below the run's directory."""

import json
from pathlib import Path
from typing import Any

import pytest

from lit_align.__main__ import main
from lit_align.runtime.checkpoint_io import AtomicCheckpointIO
from lit_align.runtime.run_directory import slug, start_run

NAMES = [
    "../../outside",
    "/etc/passwd",
    "..",
    ".",
    "a/../../b",
    "~root",
    "x\x00y",
    "C:\\windows",
    "a\nb",
    "-rf",
    "",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_run_lies_below_runs(name: str, tmp_path: Path) -> None:
    run = start_run(tmp_path, name)
    assert run.resolve().is_relative_to(tmp_path / "runs")
    assert run.parent.parent == tmp_path / "runs"
    assert slug(name) not in ("", ".", "..")


def test_a_configuration_s_own_name(here: Path) -> None:
    config = here / "..evil.yaml"
    config.write_text(json.dumps({"trainer": {"max_steps": 1}}))
    few = ["--data.limit=4", "--data.cache=false", "--trainer.enable_model_summary=false"]
    assert main(["fit", "--config", str(config), "--config", "sft.yaml", *few]) == 0
    assert [path.name for path in (here / "runs").iterdir()] == ["evil"]


def test_a_checkpoint_is_not_written_through_a_link(tmp_path: Path, marks: Any) -> None:
    for name in ("last.ckpt", "last.ckpt.manifest.json"):
        (tmp_path / name).symlink_to(marks.victim)
    AtomicCheckpointIO().save_checkpoint({"global_step": 1}, tmp_path / "last.ckpt")
    assert not (tmp_path / "last.ckpt").is_symlink()


def test_removing_a_link_removes_the_link(tmp_path: Path, marks: Any) -> None:
    (tmp_path / "a.ckpt").symlink_to(marks.victim)
    (tmp_path / "b.ckpt").symlink_to(marks.victim.parent)
    for name in ("a.ckpt", "b.ckpt"):
        AtomicCheckpointIO().remove_checkpoint(tmp_path / name)
    assert list(tmp_path.iterdir()) == []
    assert marks.victim.parent.is_dir()
