"""A checkpoint as a directory that all processes write together, whole or not at all."""

import errno
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor

from lit_align.runtime.atomic_file import disk_full, remove, remove_litter, replacing, sync, temporary_beside
from lit_align.runtime.digest import bytes_of, shared_sha256
from lit_align.runtime.manifest import (
    CheckpointError,
    Content,
    Manifest,
    is_sharded,
    manifest_path,
    read_manifest,
)
from lit_align.runtime.plain_data import load_plain
from lit_align.runtime.sharded_files import ShardedFiles, WholeTensors, write_part

STATE = "state.pt"


@dataclass(frozen=True)
class Processes:
    """The processes that write together.

    Attributes:
        rank: number of this one.
        world: how many there are.
        gather: gives every process the objects of all.
    """

    rank: int
    world: int
    gather: Callable[[Any], list[Any]]

    def broadcast(self, value: Any) -> Any:
        """What process zero has."""
        return self.gather(value)[0]


def save_sharded(checkpoint: dict[str, Any], place: Path, processes: Processes) -> None:
    """Write a checkpoint's tensors in pieces, and the rest of it, and put the directory in its place.

    Args:
        checkpoint: of Lightning; ``state_dict`` and ``optimizer_states`` by names of weights, the tensors
            sharded or not.
        place: where to; the one that was there stays complete until the new one is.
        processes: all of them call this.

    Raises:
        DiskFull: no room on any of the machines.
        CheckpointError: another process failed.
    """
    temporary = temporary_beside(place)
    tensors, rest = _parted(checkpoint)

    def prepare() -> None:
        place.parent.mkdir(parents=True, exist_ok=True)
        remove_litter(place.parent)
        temporary.mkdir()

    def write() -> None:
        write_part(tensors, temporary, processes.rank, processes.gather)
        if processes.rank == 0:
            with replacing(temporary / STATE) as file:
                torch.save(rest, cast("IO[bytes]", file))
            sync(temporary)

    _on_zero(prepare, place, temporary, processes)
    temporary = processes.broadcast(temporary)
    _agree(write, place, temporary, processes)
    digest = shared_sha256(temporary, processes.rank, processes.world, processes.gather)
    step, epoch = int(checkpoint.get("global_step", 0)), int(checkpoint.get("epoch", 0))

    def finish() -> None:
        put_in_place(temporary, place, Content.now(digest, bytes_of(temporary), step, epoch))

    _on_zero(finish, place, temporary, processes)


def put_in_place(temporary: Path, place: Path, content: Content) -> None:
    """Rename a finished directory to its place, with its manifest; at each moment one of both verifies."""
    old = read_manifest(place) if place.exists() and not place.is_symlink() else None
    if old is not None:
        Manifest((content, *old.accepted)).write(place)
    aside = set_aside(place)
    temporary.rename(place)
    sync(place.parent)
    Manifest((content,)).write(place)
    remove(aside)
    manifest_path(aside).unlink(missing_ok=True)


def set_aside(place: Path) -> Path:
    """Move what is in a place to ``NAME.previous``, where it goes on being a complete checkpoint.

    Returns:
        Where it would be, also where there was nothing.
    """
    aside = place.with_name(place.name + ".previous")
    if place.is_symlink():
        place.unlink()
    elif place.exists():
        remove(aside)
        manifest = read_manifest(place)
        if manifest is not None:
            manifest.write(aside)
        place.rename(aside)
    return aside


def load_sharded(folder: Path) -> dict[str, Any]:
    """A directory as the checkpoint that one process would have written: whole tensors, numbered states.

    Raises:
        CheckpointError: parts are missing.
    """
    checkpoint, files = load_rest(folder), ShardedFiles(folder)
    checkpoint["state_dict"] = {name: files.whole(f"weights/{name}") for name in checkpoint["state_dict"]}
    states = checkpoint["optimizer_states"]
    checkpoint["optimizer_states"] = [_numbered(_filled(states[i], i, files)) for i in range(len(states))]
    return checkpoint


def load_rest(folder: Path) -> dict[str, Any]:
    """All of a checkpoint but its tensors, in whose place is ``None``."""
    return load_plain(folder / STATE)


def load_parted(place: Path, order: list[list[str]]) -> tuple[dict[str, Any], ShardedFiles | WholeTensors]:
    """A checkpoint of either kind: all but its tensors, with ``None`` in their place, and the tensors.

    Args:
        place: a directory, or a file that one process wrote.
        order: names of the weights of each optimiser, in the order of its groups; such a file has numbers.
    """
    if is_sharded(place):
        return load_rest(place), ShardedFiles(place)
    checkpoint = load_plain(place, mmap=True)
    states = checkpoint.get("optimizer_states", [])
    checkpoint["optimizer_states"] = [_named(s, names) for s, names in zip(states, order, strict=True)]
    tensors, rest = _parted(checkpoint)
    return rest, WholeTensors(tensors)


def tensor_names(states: dict[str, Any], number: int) -> dict[tuple[str, str], str]:
    """Where the tensors of an optimiser's state lie: (weight, entry) to the name in the files."""
    return {
        (weight, key): f"optimizer_{number}/{weight}/{key}"
        for weight, entries in states["state"].items()
        for key, value in entries.items()
        if value is None
    }


def _parted(checkpoint: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of weights and optimisers, and the checkpoint with ``None`` in their place."""
    weights = checkpoint["state_dict"]
    tensors = {f"weights/{name}": tensor for name, tensor in weights.items()}
    optimizers = []
    for number, state in enumerate(checkpoint.get("optimizer_states", [])):
        plain: dict[str, Any] = {}
        for weight, entries in state["state"].items():
            plain[weight] = {k: None if isinstance(v, Tensor) else v for k, v in entries.items()}
            found = {k: v for k, v in entries.items() if isinstance(v, Tensor)}
            tensors |= {f"optimizer_{number}/{weight}/{key}": value for key, value in found.items()}
        optimizers.append({"state": plain, "param_groups": state["param_groups"]})
    rest = {**checkpoint, "state_dict": dict.fromkeys(weights), "optimizer_states": optimizers}
    return tensors, rest


def _filled(state: dict[str, Any], number: int, files: ShardedFiles) -> dict[str, Any]:
    for (weight, key), name in tensor_names(state, number).items():
        if name in files:
            state["state"][weight][key] = files.whole(name)
    return state


def _numbered(state: dict[str, Any]) -> dict[str, Any]:
    """An optimiser's state by the numbers of the weights, as the optimiser itself writes it."""
    order = [name for group in state["param_groups"] for name in group["params"]]
    numbers = {name: i for i, name in enumerate(order)}
    groups = [{**group, "params": [numbers[n] for n in group["params"]]} for group in state["param_groups"]]
    return {"state": {numbers[n]: entries for n, entries in state["state"].items()}, "param_groups": groups}


def _named(state: dict[str, Any], order: list[str]) -> dict[str, Any]:
    """The reverse, for an optimiser with the same groups."""
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    if len(numbers) != len(order):
        raise CheckpointError(f"the checkpoint's optimiser has {len(numbers)} weights, this one {len(order)}")
    names = dict(zip(numbers, order, strict=True))
    groups = [{**group, "params": [names[n] for n in group["params"]]} for group in state["param_groups"]]
    return {"state": {names[n]: entries for n, entries in state["state"].items()}, "param_groups": groups}


def _on_zero(action: Callable[[], None], place: Path, temporary: Path, processes: Processes) -> None:
    _agree(action if processes.rank == 0 else lambda: None, place, temporary, processes)


def _agree(action: Callable[[], None], place: Path, temporary: Path, processes: Processes) -> None:
    """Do something, and fail on all processes where it fails on one."""
    mine: Exception | None = None
    try:
        action()
    except Exception as error:
        mine = error
    full = isinstance(mine, OSError) and mine.errno in (errno.ENOSPC, errno.EDQUOT)
    told = processes.gather(None if mine is None else (full, f"{type(mine).__name__}: {mine}"))
    failed = {rank: error for rank, error in enumerate(told) if error is not None}
    if not failed:
        return
    if processes.rank == 0:
        remove(temporary)
    processes.gather(None)
    if any(error[0] for error in failed.values()):
        raise disk_full(place) from mine
    rank, (_, text) = next(iter(failed.items()))
    raise CheckpointError(f"{place} could not be written: process {rank} says {text}") from mine
