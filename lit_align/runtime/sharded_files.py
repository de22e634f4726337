"""Tensors that are spread over processes, in files that any other number of processes can read.

Each process writes the pieces it holds as one safetensors file; ``index.json`` says which piece of which
tensor lies where. Nothing in such a directory is a pickle but ``state.pt``, the trainer's plain values,
which are read as data.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from lit_align.runtime.atomic_file import replacing, sync
from lit_align.runtime.manifest import INDEX, CheckpointError

#: Of safetensors, which reports a full disk in words.
_FULL = "os error 28"
_PART = re.compile(r"part-\d{5}\.safetensors")

#: Offset and shape of a piece.
Place = tuple[tuple[int, ...], tuple[int, ...]]


def write_part(
    tensors: Mapping[str, Tensor], folder: Path, rank: int, gather: Callable[[Any], list[Any]]
) -> None:
    """Write the pieces of this process; what several hold, the first of them writes.

    Args:
        tensors: the same names on all processes; a ``DTensor`` is written in pieces.
        folder: is there already, and empty.
        rank: number of this process.
        gather: gives every process the objects of all.

    Raises:
        OSError: with ``ENOSPC`` where there is no room.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    local = {name: _piece(tensor) for name, tensor in tensors.items()}
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    held = gather({name: place for name, (place, _) in local.items()})
    writers: dict[tuple[str, Place], int] = {}
    for holder, places in enumerate(held):
        for name, place in places.items():
            # An uneven split leaves some processes with nothing.
            if 0 not in place[1]:
                writers.setdefault((name, place), holder)
    own = {name: t for name, (place, t) in local.items() if writers.get((name, place)) == rank}
    part = folder / _part(rank)
    try:
        save_file({name: t.to("cpu", copy=True).contiguous() for name, t in own.items()}, part)
    except SafetensorError as error:
        if _FULL in str(error):
            raise OSError(28, str(error), str(part)) from error
        raise
    sync(part)
    if rank == 0:
        index: dict[str, Any] = {name: {"shape": shapes[name], "pieces": []} for name in shapes}
        for (name, (offset, shape)), holder in writers.items():
            index[name]["pieces"].append({"file": _part(holder), "offset": offset, "shape": shape})
        with replacing(folder / INDEX) as file:
            file.write((json.dumps({"format": 1, "tensors": index}, indent=1) + "\n").encode())


class ShardedFiles:
    """What :func:`write_part` wrote, read in any other pieces.

    Args:
        folder: the directory.

    Raises:
        CheckpointError: the index names files that are not parts of this directory.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._tensors: dict[str, Any] = json.loads((folder / INDEX).read_bytes())["tensors"]
        self._open: dict[str, Any] = {}
        for name, entry in self._tensors.items():
            for piece in entry["pieces"]:
                place = folder / str(piece["file"])
                # The index may be a stranger's: it must not lead out of the directory.
                if not _PART.fullmatch(str(piece["file"])) or place.is_symlink() or not place.is_file():
                    raise CheckpointError(
                        f"{folder / INDEX}: {name} is in {piece['file']!r}, which is no part"
                    )

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def names(self) -> list[str]:
        """Of all tensors."""
        return list(self._tensors)

    def whole(self, name: str) -> Tensor:
        """A tensor, on the CPU."""
        shape = tuple(self._tensors[name]["shape"])
        return self._read(name, (tuple(0 for _ in shape), shape))

    def fill(self, name: str, target: Tensor) -> None:
        """Copy into ``target`` what it holds of the tensor: all, or the local piece of a ``DTensor``."""
        _check_shape(name, target, self._tensors[name]["shape"])
        place, local = _piece(target)
        if 0 not in place[1]:
            with torch.no_grad():
                local.copy_(self._read(name, place))

    def _read(self, name: str, place: Place) -> Tensor:
        offset, shape = place
        found: Tensor | None = None
        done = 0
        for piece in self._tensors[name]["pieces"]:
            starts = [max(a, b) for a, b in zip(offset, piece["offset"], strict=True)]
            ends = [
                min(a + n, b + m)
                for a, n, b, m in zip(offset, shape, piece["offset"], piece["shape"], strict=True)
            ]
            if any(start >= end for start, end in zip(starts, ends, strict=True)):
                continue
            source = self._file(piece["file"])
            if starts:
                inside = _slices(starts, ends, piece["offset"])
                values = source.get_slice(name)[inside]
            else:
                values = source.get_tensor(name)
            if found is None:
                found = torch.empty(shape, dtype=values.dtype)
            found[_slices(starts, ends, offset)] = values
            done += values.numel()
        if found is None or done != found.numel():
            raise CheckpointError(f"{self.folder} holds {done:,} numbers of {name} {list(shape)}, not all")
        return found

    def _file(self, name: str) -> Any:
        from safetensors import safe_open

        if name not in self._open:
            self._open[name] = safe_open(self.folder / name, framework="pt", device="cpu")
        return self._open[name]


class WholeTensors:
    """The same from tensors of one process, which every process has at hand.

    Args:
        tensors: by name.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def fill(self, name: str, target: Tensor) -> None:
        """Copy into ``target`` what it holds of the tensor: all, or the local piece of a ``DTensor``."""
        whole = self._tensors[name]
        _check_shape(name, target, whole.shape)
        (offset, shape), local = _piece(target)
        ends = [start + size for start, size in zip(offset, shape, strict=True)]
        with torch.no_grad():
            local.copy_(whole[_slices(list(offset), ends, [0] * len(ends))])


def _check_shape(name: str, target: Tensor, shape: Sequence[int]) -> None:
    if list(target.shape) != list(shape):
        raise CheckpointError(f"in the checkpoint {name} is {list(shape)}, not {list(target.shape)}")


def _piece(tensor: Tensor) -> tuple[Place, Tensor]:
    if not isinstance(tensor, DTensor):
        return (tuple(0 for _ in tensor.shape), tuple(tensor.shape)), tensor.detach()
    # How torch's own checkpoints ask a tensor where its local part lies.
    (chunk,) = tensor.__create_chunk_list__()
    local: Tensor = tensor.to_local().detach()
    return (tuple(chunk.offsets), tuple(chunk.sizes)), local


def _slices(starts: list[int], ends: list[int], origin: Any) -> tuple[slice, ...]:
    return tuple(slice(start - o, end - o) for start, end, o in zip(starts, ends, origin, strict=True))


def _part(rank: int) -> str:
    return f"part-{rank:05d}.safetensors"
