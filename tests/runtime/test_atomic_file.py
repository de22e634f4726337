"""Temporary files of other processes; saves through them are tested in test_checkpoint_io.py."""

from pathlib import Path

from lit_align.runtime.atomic_file import remove_litter, replacing


def test_litter_that_another_machine_takes_away_meanwhile(tmp_path: Path) -> None:
    # What is listed, and not there when it is looked at.
    (tmp_path / ".last.ckpt.elsewhere-7.tmp").symlink_to(tmp_path / "gone")
    remove_litter(tmp_path)
    with replacing(tmp_path / "last.ckpt") as file:
        file.write(b"new")
    assert (tmp_path / "last.ckpt").read_bytes() == b"new"
