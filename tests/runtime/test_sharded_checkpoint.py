"""A checkpoint that is a directory is whole or not there, and any number of processes reads it."""

import errno
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lit_align.runtime import sharded_checkpoint
from lit_align.runtime.atomic_file import DiskFull
from lit_align.runtime.checkpoint_io import AtomicCheckpointIO
from lit_align.runtime.digest import sha256_of, shared_sha256
from lit_align.runtime.manifest import CheckpointError, fault, manifest_path, newest_complete
from lit_align.runtime.sharded_checkpoint import (
    Processes,
    load_parted,
    load_sharded,
    save_sharded,
    tensor_names,
)
from lit_align.runtime.sharded_files import ShardedFiles

ALONE = Processes(0, 1, lambda value: [value])


def state(step: int) -> dict[str, Any]:
    weights = {"net.weight": torch.full((4, 3), float(step)), "net.bias": torch.arange(3.0) + step}
    moments = {name: {"step": torch.tensor(float(step)), "exp_avg": t / 2} for name, t in weights.items()}
    groups = [{"lr": 0.1, "params": ["net.bias"]}, {"lr": 0.2, "params": ["net.weight"]}]
    return {
        "global_step": step,
        "epoch": 0,
        "state_dict": weights,
        "optimizer_states": [{"state": moments, "param_groups": groups}],
        "callbacks": {"one": {"rows": 7}},
    }


def step_of(path: Path | None) -> int:
    assert path is not None
    return int(AtomicCheckpointIO().load_checkpoint(path)["global_step"])


def test_it_loads_as_if_one_process_had_written_it(tmp_path):
    save_sharded(state(3), tmp_path / "a.ckpt", ALONE)
    loaded = AtomicCheckpointIO().load_checkpoint(tmp_path / "a.ckpt")
    assert loaded["global_step"] == 3
    assert loaded["callbacks"] == {"one": {"rows": 7}}
    assert torch.equal(loaded["state_dict"]["net.weight"], torch.full((4, 3), 3.0))
    optimizer = loaded["optimizer_states"][0]
    # By number, in the order of the groups, as torch's own optimisers write it.
    assert [group["params"] for group in optimizer["param_groups"]] == [[0], [1]]
    assert torch.equal(optimizer["state"][0]["exp_avg"], (torch.arange(3.0) + 3) / 2)
    assert float(optimizer["state"][1]["step"]) == 3.0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.ckpt", "a.ckpt.manifest.json"]


def test_pieces_of_two_are_read_in_pieces_of_any_number(tmp_path):
    whole = torch.arange(20.0).reshape(5, 4)
    for rank, rows in enumerate((whole[:3], whole[3:])):
        save_file({"w": rows.contiguous()}, tmp_path / f"part-0000{rank}.safetensors")
    pieces = [
        {"file": "part-00000.safetensors", "offset": [0, 0], "shape": [3, 4]},
        {"file": "part-00001.safetensors", "offset": [3, 0], "shape": [2, 4]},
    ]
    index = {"format": 1, "tensors": {"w": {"shape": [5, 4], "pieces": pieces}}}
    (tmp_path / "index.json").write_text(json.dumps(index))
    files = ShardedFiles(tmp_path)
    assert torch.equal(files.whole("w"), whole)
    for place in (((2, 0), (2, 4)), ((0, 1), (5, 2)), ((4, 3), (1, 1))):
        (a, b), (n, m) = place
        assert torch.equal(files._read("w", place), whole[a : a + n, b : b + m])
    index["tensors"]["w"]["pieces"] = pieces[:1]
    (tmp_path / "index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"holds 12 numbers of w \[5, 4\], not all"):
        ShardedFiles(tmp_path).whole("w")


def test_a_weight_of_another_shape_is_refused_by_name(tmp_path):
    save_sharded(state(1), tmp_path / "a.ckpt", ALONE)
    with pytest.raises(CheckpointError, match=r"net\.bias is \[3\], not \[4\]"):
        ShardedFiles(tmp_path / "a.ckpt").fill("weights/net.bias", torch.zeros(4))


def test_a_file_and_a_directory_give_the_same_pieces(tmp_path):
    directory = state(2)
    save_sharded(directory, tmp_path / "a.ckpt", ALONE)
    AtomicCheckpointIO().save_checkpoint(load_sharded(tmp_path / "a.ckpt"), tmp_path / "b.ckpt")
    order = [["net.bias", "net.weight"]]
    for name in ("a.ckpt", "b.ckpt"):
        rest, source = load_parted(tmp_path / name, order)
        assert rest["optimizer_states"][0]["param_groups"] == directory["optimizer_states"][0]["param_groups"]
        assert rest["state_dict"] == {"net.weight": None, "net.bias": None}
        places = tensor_names(rest["optimizer_states"][0], 0)
        found = torch.zeros(4, 3)
        source.fill(places["net.weight", "exp_avg"], found)
        assert torch.equal(found, torch.full((4, 3), 1.0))
    with pytest.raises(CheckpointError, match="optimiser has 2 weights, this one 1"):
        load_parted(tmp_path / "b.ckpt", [["net.bias"]])


def test_the_digest_is_the_same_whoever_reads(tmp_path):
    save_sharded(state(1), tmp_path / "a.ckpt", ALONE)
    parts: list[Any] = []
    shared_sha256(tmp_path / "a.ckpt", 1, 2, lambda mine: parts.append(mine) or [mine])
    both = shared_sha256(tmp_path / "a.ckpt", 0, 2, lambda mine: [mine, *parts])
    assert both == sha256_of(tmp_path / "a.ckpt")


@pytest.mark.parametrize("damage", ["flipped", "cut", "part gone", "part swapped", "no manifest"])
def test_damage_is_passed_over_aloud(tmp_path, caplog, damage):
    for step in (1, 2):
        save_sharded(state(step), tmp_path / f"{step}.ckpt", ALONE)
    bad = tmp_path / "2.ckpt"
    part = bad / "part-00000.safetensors"
    content = bytearray(part.read_bytes())
    if damage == "flipped":
        content[-1] ^= 1
        part.write_bytes(content)
    elif damage == "cut":
        part.write_bytes(content[:-4])
    elif damage == "part gone":
        part.unlink()
    elif damage == "part swapped":
        part.write_bytes((tmp_path / "1.ckpt" / part.name).read_bytes())
    else:
        manifest_path(bad).unlink()
    assert fault(bad) is not None
    assert step_of(bad) == 1
    assert "CHECKPOINT SKIPPED" in caplog.text
    assert newest_complete(tmp_path) == tmp_path / "1.ckpt"


def killed_save(folder: Path, name: str, point: int) -> int:
    save_sharded(state(1), folder / "1.ckpt", ALONE)
    child = os.fork()
    if child == 0:
        reached = 0

        def deadly(call):
            def run(*args, **kwargs):
                nonlocal reached
                reached += 1
                if reached == point:
                    os.kill(os.getpid(), signal.SIGKILL)
                result = call(*args, **kwargs)
                reached += 1
                if reached == point:
                    os.kill(os.getpid(), signal.SIGKILL)
                return result

            return run

        os.fsync, os.replace, os.rename = deadly(os.fsync), deadly(os.replace), deadly(os.rename)
        os.mkdir, os.unlink, os.rmdir = deadly(os.mkdir), deadly(os.unlink), deadly(os.rmdir)
        save_sharded(state(2), folder / name, ALONE)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("name", ["1.ckpt", "2.ckpt"])
def test_killed_anywhere_inside_a_save(tmp_path, name):
    point, code = 0, -signal.SIGKILL
    while code == -signal.SIGKILL:
        point += 1
        folder = tmp_path / str(point)
        folder.mkdir()
        code = killed_save(folder, name, point)
        assert step_of(newest_complete(folder)) in (1, 2), point
        # The next save goes well, and clears away what the dead process left.
        save_sharded(state(3), folder / name, ALONE)
        assert step_of(folder / name) == 3
        left = sorted(p.name for p in folder.iterdir() if not p.name.endswith(".manifest.json"))
        assert left == sorted({"1.ckpt", name}), point
    assert code == 0
    assert point > 16


def test_disk_full_is_named_and_leaves_the_old_one(tmp_path, monkeypatch):
    save_sharded(state(1), tmp_path / "last.ckpt", ALONE)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sharded_checkpoint, "write_part", full)
    with pytest.raises(DiskFull, match=r"no room for last\.ckpt, .* is untouched"):
        save_sharded(state(2), tmp_path / "last.ckpt", ALONE)
    assert step_of(tmp_path / "last.ckpt") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last.ckpt", "last.ckpt.manifest.json"]


def test_where_another_process_fails_all_do(tmp_path):
    calls = []

    def gather(value: Any) -> list[Any]:
        calls.append(value)
        # Nothing wrong with the preparation, then the name of the directory, then who holds what.
        return [value, value if len(calls) < 4 else (False, "OSError: broken disk")]

    with pytest.raises(CheckpointError, match="process 1 says OSError: broken disk"):
        save_sharded(state(1), tmp_path / "a.ckpt", Processes(0, 2, gather))
    assert newest_complete(tmp_path) is None


def test_directories_and_files_take_each_other_s_place(tmp_path):
    io = AtomicCheckpointIO()
    save_sharded(state(1), tmp_path / "last.ckpt", ALONE)
    io.save_checkpoint(state(2), tmp_path / "last.ckpt")
    assert (tmp_path / "last.ckpt").is_file()
    assert step_of(tmp_path / "last.ckpt") == 2
    save_sharded(state(3), tmp_path / "last.ckpt", ALONE)
    assert step_of(tmp_path / "last.ckpt") == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last.ckpt", "last.ckpt.manifest.json"]


def test_two_stay_whatever_is_removed(tmp_path):
    io = AtomicCheckpointIO()
    for step in range(4):
        save_sharded(state(step), tmp_path / f"{step}.ckpt", ALONE)
    for step in range(4):
        io.remove_checkpoint(tmp_path / f"{step}.ckpt")
    assert sorted(p.name for p in tmp_path.glob("*.ckpt")) == ["2.ckpt", "3.ckpt"]


class Payload:
    def __reduce__(self):
        return (os.mkdir, ("pwned",))


def test_a_stranger_s_directory_runs_nothing_and_leads_nowhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_sharded(state(1), tmp_path / "a.ckpt", ALONE)
    index = tmp_path / "a.ckpt" / "index.json"
    good = index.read_text()
    save_file({"weights/net.bias": torch.zeros(3)}, tmp_path / "part-00009.safetensors")
    (tmp_path / "a.ckpt" / "part-00008.safetensors").symlink_to(tmp_path / "part-00009.safetensors")
    for name in (
        "../part-00009.safetensors",
        "/etc/passwd",
        "part-00008.safetensors",
        "part-00007.safetensors",
    ):
        index.write_text(good.replace("part-00000.safetensors", name))
        with pytest.raises(CheckpointError, match="which is no part"):
            load_sharded(tmp_path / "a.ckpt")
    index.write_text(good)
    torch.save({"state_dict": Payload()}, tmp_path / "a.ckpt" / "state.pt")
    with pytest.raises(CheckpointError, match="could run code"):
        load_sharded(tmp_path / "a.ckpt")
    assert not (tmp_path / "pwned").exists()
