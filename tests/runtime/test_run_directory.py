"""Directories of runs: counted up, never shared."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lit_align.runtime import run_directory
from lit_align.runtime.checkpoint_io import AtomicCheckpointIO
from lit_align.runtime.run_directory import VARIABLE, newest_checkpoint, slug, start_run


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "")
    monkeypatch.delenv(VARIABLE)


def test_numbers_count_up_and_gaps_stay(tmp_path: Path) -> None:
    assert start_run(tmp_path, "dpo") == tmp_path / "runs" / "dpo" / "1"
    (tmp_path / "runs" / "dpo" / "9").mkdir()
    (tmp_path / "runs" / "dpo" / "notes").mkdir()
    assert start_run(tmp_path, "dpo").name == "10"
    assert start_run(tmp_path, "sft").name == "1"


def test_runs_started_at_once_get_directories_of_their_own(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: start_run(tmp_path, "dpo"), range(40)))
    assert sorted(int(path.name) for path in found) == list(range(1, 41))


def test_other_processes_make_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = start_run(tmp_path, "dpo")
    monkeypatch.setattr(run_directory.rank_zero_only, "rank", 1)
    assert start_run(tmp_path, "dpo") == run.absolute()
    monkeypatch.delenv(VARIABLE)
    assert not start_run(tmp_path, "dpo").exists()
    assert os.listdir(tmp_path / "runs" / "dpo") == ["1"]


@pytest.mark.parametrize("name", ["../../etc", "/abs", "a/b", "..", "", "Ünï cödé", "a\x00b", "-x"])
def test_names_stay_inside(name: str, tmp_path: Path) -> None:
    made = slug(name)
    assert made
    assert (tmp_path / made).resolve().parent == tmp_path.resolve()
    assert not made.startswith("-")


def test_newest_checkpoint_by_time(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="train first"):
        newest_checkpoint(tmp_path, "dpo")
    for number, (run, name, time) in enumerate([(1, "last", 50), (2, "a", 90), (2, "b", 80), (3, "x", 10)]):
        path = tmp_path / "runs" / "dpo" / str(run) / "checkpoints" / f"{name}.ckpt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(number))
        os.utime(path, (time, time))
    assert newest_checkpoint(tmp_path, "dpo").parts[-3:] == ("2", "checkpoints", "a.ckpt")
    # Somebody's copy beside the runs.
    copy = tmp_path / "runs" / "dpo" / "2-before" / "checkpoints" / "a.ckpt"
    copy.parent.mkdir(parents=True)
    copy.write_text("copy")
    os.utime(copy, (90, 90))
    assert newest_checkpoint(tmp_path, "dpo").parts[-3] == "2"


def test_newest_checkpoint_is_one_that_is_complete(tmp_path: Path) -> None:
    io = AtomicCheckpointIO()
    for run in (1, 2, 3):
        io.save_checkpoint(
            {"global_step": run}, tmp_path / "runs" / "dpo" / str(run) / "checkpoints" / "last.ckpt"
        )
    (tmp_path / "runs/dpo/3/checkpoints/last.ckpt").write_bytes(b"torn")
    assert newest_checkpoint(tmp_path, "dpo").parts[-3] == "2"
    for run in (1, 2):
        (tmp_path / f"runs/dpo/{run}/checkpoints/last.ckpt").write_bytes(b"torn")
    with pytest.raises(FileNotFoundError, match="no complete checkpoint"):
        newest_checkpoint(tmp_path, "dpo")
