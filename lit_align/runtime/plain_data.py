"""Reading what torch wrote, as data."""

import pickle
from pathlib import Path
from typing import Any

import torch

from lit_align.runtime.manifest import CheckpointError


def load_plain(path: Path, map_location: Any = "cpu", mmap: bool = False) -> dict[str, Any]:
    """Tensors and plain values from a file of ``torch.save``; nothing in it is run.

    Args:
        path: the file.
        map_location: where its tensors go.
        mmap: read tensors only as far as they are used.

    Raises:
        CheckpointError: it holds more than that.
    """
    try:
        return torch.load(path, map_location=map_location, weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds more than tensors and plain values, and loading that could run code: "
            f"{str(error).splitlines()[0]}"
        ) from error
