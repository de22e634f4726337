import errno
import json
import logging
import os
import signal
from pathlib import Path

import pytest
import torch

from lit_align.runtime import atomic_file
from lit_align.runtime.atomic_file import DiskFull
from lit_align.runtime.checkpoint_io import AtomicCheckpointIO, CheckpointError
from lit_align.runtime.manifest import fault, manifest_path, newest_complete, read_manifest


def state(step: int, size: int = 1000) -> dict:
    return {"global_step": step, "epoch": 0, "weights": torch.full((size,), float(step))}


def step_of(path: Path | None) -> int:
    assert path is not None
    return int(torch.load(path, weights_only=True)["global_step"])


def litter(folder: Path) -> list[str]:
    return [p.name for p in folder.iterdir() if p.name.startswith(".")]


@pytest.fixture
def io() -> AtomicCheckpointIO:
    return AtomicCheckpointIO()


def test_what_is_saved_is_loaded(io, tmp_path):
    path = tmp_path / "new" / "a.ckpt"
    io.save_checkpoint(state(3), path)
    loaded = io.load_checkpoint(path)
    assert loaded["global_step"] == 3
    assert torch.equal(loaded["weights"], state(3)["weights"])
    assert sorted(p.name for p in path.parent.iterdir()) == ["a.ckpt", "a.ckpt.manifest.json"]
    manifest = json.loads(manifest_path(path).read_text())
    assert list(manifest)[-1] == "complete"
    assert manifest["accepted"][0]["step"] == 3
    assert manifest["accepted"][0]["bytes"] == path.stat().st_size


def test_overwriting_leaves_one_content(io, tmp_path):
    path = tmp_path / "last.ckpt"
    for step in (1, 2, 3):
        io.save_checkpoint(state(step), path)
    manifest = read_manifest(path)
    assert manifest is not None
    assert [one.step for one in manifest.accepted] == [3]
    assert step_of(newest_complete(tmp_path)) == 3


@pytest.mark.parametrize("damage", ["truncated", "flipped", "swapped", "longer", "gone", "manifest cut"])
def test_a_damaged_file_is_passed_over_aloud(io, tmp_path, caplog, damage):
    good, bad = tmp_path / "a.ckpt", tmp_path / "b.ckpt"
    io.save_checkpoint(state(1), good)
    io.save_checkpoint(state(2), bad)
    content = bytearray(bad.read_bytes())
    if damage == "truncated":
        bad.write_bytes(content[:-10])
    elif damage == "flipped":
        content[len(content) // 2] ^= 1
        bad.write_bytes(content)
    elif damage == "swapped":
        bad.write_bytes(good.read_bytes())
    elif damage == "longer":
        bad.write_bytes(content + b"x")
    elif damage == "gone":
        bad.write_bytes(b"")
    else:
        manifest_path(bad).write_text(manifest_path(bad).read_text()[:40])
    with caplog.at_level(logging.WARNING):
        assert io.load_checkpoint(bad)["global_step"] == 1
    assert "CHECKPOINT SKIPPED" in caplog.text
    assert str(bad) in caplog.text
    assert newest_complete(tmp_path) == good


def test_nothing_intact_is_an_error(io, tmp_path):
    path = tmp_path / "a.ckpt"
    io.save_checkpoint(state(1), path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"a\.ckpt cannot be used: it has .* bytes instead of"):
        io.load_checkpoint(path)
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        io.load_checkpoint(tmp_path / "b.ckpt")


def test_newest_of_several_directories(io, tmp_path):
    for step, name in enumerate(("1", "2", "3")):
        io.save_checkpoint(state(step), tmp_path / name / "last.ckpt")
    (tmp_path / "3" / "last.ckpt").write_bytes(b"torn")
    assert newest_complete(tmp_path / n for n in ("1", "2", "3")) == tmp_path / "2" / "last.ckpt"
    assert newest_complete(tmp_path / "empty") is None


def test_a_stranger_is_loaded_unverified(io, tmp_path, caplog):
    torch.save(state(7), tmp_path / "lightning.ckpt")
    with caplog.at_level(logging.WARNING):
        assert io.load_checkpoint(tmp_path / "lightning.ckpt")["global_step"] == 7
    assert "unverified" in caplog.text


class Payload:
    def __reduce__(self):
        return (os.mkdir, ("pwned",))


def test_a_pickle_is_never_run(io, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"weights": Payload()}, tmp_path / "evil.ckpt")
    with pytest.raises(CheckpointError, match="could run code"):
        io.load_checkpoint(tmp_path / "evil.ckpt", weights_only=False)
    assert not (tmp_path / "pwned").exists()


def test_two_stay_whatever_is_removed(io, tmp_path):
    paths = [tmp_path / f"{step}.ckpt" for step in range(4)]
    io.save_checkpoint(state(0), paths[0])
    for step in (1, 2, 3):
        # As ModelCheckpoint(save_top_k=1) does.
        io.save_checkpoint(state(step), paths[step])
        io.remove_checkpoint(paths[step - 1])
    assert sorted(p.name for p in tmp_path.glob("*.ckpt")) == ["2.ckpt", "3.ckpt"]
    assert len(list(tmp_path.iterdir())) == 4
    # Another process, which has not seen the removal that was put off.
    AtomicCheckpointIO().save_checkpoint(state(4), tmp_path / "4.ckpt")
    assert sorted(p.name for p in tmp_path.glob("*.ckpt")) == ["3.ckpt", "4.ckpt"]
    one = AtomicCheckpointIO(keep=1)
    one.remove_checkpoint(tmp_path / "3.ckpt")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["4.ckpt", "4.ckpt.manifest.json"]


@pytest.mark.parametrize("at", [0, 1, 3])
def test_disk_full_is_named_and_leaves_the_old_file(io, tmp_path, monkeypatch, at):
    path = tmp_path / "last.ckpt"
    io.save_checkpoint(state(1), path)
    count = 0

    def write(self, data):
        nonlocal count
        count += 1
        if count > at:
            self.error = OSError(errno.ENOSPC, "No space left on device")
            raise self.error
        self.file.write(data)

    with monkeypatch.context() as patch:
        patch.setattr(atomic_file.HashingWriter, "write", write)
        with pytest.raises(DiskFull, match=r"no room for last\.ckpt .* is untouched"):
            io.save_checkpoint(state(2), path)
    assert fault(path) is None
    assert io.load_checkpoint(path)["global_step"] == 1
    assert litter(tmp_path) == []


def save_and_die(folder: Path, name: str, point: int) -> tuple[int, int]:
    """Save step 1 as ``1.ckpt``, and step 2 as ``name`` in a child killed at its ``point``-th system call.

    Returns:
        The child's exit status, and how many points it reached.
    """
    AtomicCheckpointIO().save_checkpoint(state(1), folder / "1.ckpt")
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        reached = 0

        def deadly(call):
            def run(*args, **kwargs):
                nonlocal reached
                for moment in ("before", "after"):
                    reached += 1
                    if reached == point:
                        os.kill(os.getpid(), signal.SIGKILL)
                    result = call(*args, **kwargs) if moment == "before" else result  # noqa: F821
                return result

            return run

        os.fsync, os.replace = deadly(os.fsync), deadly(os.replace)
        atomic_file.HashingWriter.write = deadly(atomic_file.HashingWriter.write)
        AtomicCheckpointIO().save_checkpoint(state(2), folder / name)
        os.write(write, bytes([reached]))
        os._exit(0)
    os.close(write)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), int.from_bytes(os.read(read, 1), "big")


@pytest.mark.parametrize("name", ["1.ckpt", "2.ckpt"])
def test_killed_anywhere_inside_a_save(tmp_path, name):
    (tmp_path / "0").mkdir()
    code, points = save_and_die(tmp_path / "0", name, 0)
    assert code == 0
    assert points >= 8
    for point in range(1, points + 1):
        folder = tmp_path / str(point)
        folder.mkdir()
        assert save_and_die(folder, name, point)[0] == -signal.SIGKILL
        newest = newest_complete(folder)
        assert newest is not None
        assert AtomicCheckpointIO().load_checkpoint(newest)["global_step"] in (1, 2)
        # The next save goes well, and clears away what the dead process left.
        AtomicCheckpointIO().save_checkpoint(state(3), folder / "last.ckpt")
        assert step_of(newest_complete(folder)) == 3
        assert litter(folder) == []


def test_litter_of_the_living_stays(io, tmp_path):
    host = atomic_file._host()
    alive, dead = tmp_path / f".a.ckpt.{host}-{os.getppid()}.tmp", tmp_path / f".a.ckpt.{host}-999999999.tmp"
    stranger = tmp_path / ".notes.tmp"
    for path in (alive, dead, stranger):
        path.write_text("x")
    io.save_checkpoint(state(1), tmp_path / "a.ckpt")
    assert alive.exists()
    assert stranger.exists()
    assert not dead.exists()


def test_a_link_is_followed_when_loading_and_replaced_when_saving(io, tmp_path):
    io.save_checkpoint(state(1), tmp_path / "1.ckpt")
    (tmp_path / "last.ckpt").symlink_to("1.ckpt")
    assert io.load_checkpoint(tmp_path / "last.ckpt")["global_step"] == 1
    io.save_checkpoint(state(2), tmp_path / "last.ckpt")
    assert not (tmp_path / "last.ckpt").is_symlink()
    assert io.load_checkpoint(tmp_path / "1.ckpt")["global_step"] == 1
    io.remove_checkpoint(tmp_path / "missing.ckpt")


def test_remote_paths_are_refused(io):
    with pytest.raises(ValueError, match="mounted file system"):
        io.save_checkpoint(state(1), "s3://bucket/a.ckpt")
