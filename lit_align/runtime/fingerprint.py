"""Short names of data, to notice that it changed between two runs."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lit_align.runtime.seeds import isolated

#: Rows of a stranger's dataset that are looked at, evenly spread.
_SAMPLED_ROWS = 16
#: Numbers of a weight that are looked at.
_SAMPLED_NUMBERS = 256


def fingerprint(dataset: Any) -> str:
    """A short digest of a dataset's content.

    What a dataset says about itself (``fingerprint()`` or ``fingerprint``, and the ``_fingerprint`` of
    Hugging Face's) is believed; our own token tables are digested whole; of another map-style dataset
    its length and a few rows are, as far as they consist of plain data and arrays.

    >>> fingerprint([1, 2, 3]) == fingerprint([1, 2, 3]), fingerprint([1, 2, 3]) == fingerprint([1, 2, 4])
    (True, False)
    """
    digest = hashlib.sha256()
    told = getattr(dataset, "fingerprint", None) or getattr(dataset, "_fingerprint", None)
    told = told() if callable(told) else told
    tensors = getattr(getattr(dataset, "table", None), "tensors", None)
    if isinstance(told, str):
        digest.update(told.encode())
    elif callable(tensors):
        _feed(digest, tensors())
    else:
        size = len(dataset)
        _feed(digest, size)
        for i in sorted({round(k * (size - 1) / (_SAMPLED_ROWS - 1)) for k in range(_SAMPLED_ROWS)}):
            if 0 <= i < size:
                # What a dataset draws at random is not its content.
                with isolated(i):
                    _feed(digest, dataset[i])
    return digest.hexdigest()[:16]


def digest_of(*values: Any) -> str:
    """A short digest of plain data and arrays."""
    digest = hashlib.sha256()
    _feed(digest, values)
    return digest.hexdigest()[:16]


def _feed(digest: Any, value: Any) -> None:
    """Add a value to a digest; of an object of unknown kind only the name of its class."""
    digest.update(type(value).__name__.encode() + b"\x00")
    if isinstance(value, Tensor):
        digest.update(str((value.dtype, tuple(value.shape))).encode())
        plain = value.detach().cpu().contiguous()
        # Bytes as they are: NumPy knows no bfloat16.
        digest.update(plain.reshape(-1).view(torch.uint8).numpy() if plain.numel() else b"")
    elif isinstance(value, np.ndarray):
        digest.update(str((value.dtype, value.shape)).encode() + np.ascontiguousarray(value).tobytes())
    elif isinstance(value, str | bytes | int | float | bool | None):
        digest.update(repr(value).encode() + b"\x00")
    elif isinstance(value, Mapping):
        for key in sorted(value, key=repr):
            _feed(digest, key)
            _feed(digest, value[key])
    elif isinstance(value, Sequence):
        digest.update(str(len(value)).encode() + b"\x00")
        for item in value:
            _feed(digest, item)


def frozen_digest(model: nn.Module) -> str | None:
    """A short digest of the weights that are not trained, ``None`` where all are.

    Of each its name, shape, dtype and a few hundred of its numbers, evenly spread: enough to tell two models
    of one shape apart, in no time.
    """
    frozen = {name: p for name, p in model.named_parameters() if not p.requires_grad}
    if not frozen:
        return None
    digest = hashlib.sha256()
    for name in sorted(frozen):
        flat = frozen[name].detach().reshape(-1)
        count = min(flat.numel(), _SAMPLED_NUMBERS)
        # In whole numbers: the places in a tensor of millions are more than float32 can tell apart.
        spread = torch.arange(count) * (flat.numel() - 1) // max(count - 1, 1)
        _feed(digest, (name, tuple(frozen[name].shape), flat[spread.to(flat.device)]))
    return digest.hexdigest()[:16]
