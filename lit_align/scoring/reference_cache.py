"""Log-probs of a reference on disk: named by what they were computed from, so that they never go stale.

A folder per reference, named by a digest of its weights; in it, safetensors files with the log-probs of some
rows each. Nothing is ever changed in place, and nothing is a pickle.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_VERSION = 1
#: Fields of a model's configuration that say nothing about what it computes.
_INERT = ("_name_or_path", "transformers_version", "architectures", "use_cache", "torch_dtype", "dtype")


def cache_root() -> Path:
    """``LIT_ALIGN_CACHE``, or ``~/.cache/lit-align``."""
    return Path(os.environ.get("LIT_ALIGN_CACHE") or "~/.cache/lit-align").expanduser()


def row_key(prompt: Sequence[int], completion: Sequence[int], weights: Sequence[float]) -> bytes:
    """What the log-probs of a completion depend on beside the model: the ids, and which tokens count.

    The ids are what the tokenizer makes of a text, so another tokenizer, template or truncation gives other
    keys by itself.

    >>> row_key([1, 2], [3], [1.0]) == row_key([1], [2, 3], [1.0, 1.0])
    False
    """
    digest = hashlib.sha256()
    for part in (prompt, completion, [int(w != 0) for w in weights]):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(torch.tensor(part, dtype=torch.int64).numpy().tobytes())
    return digest.digest()


def weights_digest(
    tensors: Mapping[str, Tensor], config: Any = None, adapter: Mapping[str, Any] | None = None
) -> str:
    """SHA-256 over every byte of the weights, their names, shapes and dtypes, and the architecture.

    Every byte, so that one changed weight is another reference; tensors are hashed in threads, and the whole
    takes about a second per few gigabytes, once per run.

    Args:
        tensors: names and weights, on any device.
        config: the model's configuration, if it has one of transformers.
        adapter: what beside its weights describes an adapter.
    """
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        names = sorted(tensors)
        digests = list(pool.map(lambda name: _tensor_digest(tensors[name]), names))
    described = config.to_diff_dict() if hasattr(config, "to_diff_dict") else {}
    described = {key: value for key, value in described.items() if key not in _INERT}
    whole = {"version": _VERSION, "config": described, "adapter": dict(adapter or {})}
    whole["tensors"] = dict(zip(names, digests, strict=True))
    return hashlib.sha256(json.dumps(whole, sort_keys=True, default=str).encode()).hexdigest()


def _tensor_digest(tensor: Tensor) -> str:
    if hasattr(tensor, "full_tensor"):
        tensor = tensor.full_tensor()
    whole = tensor.detach().contiguous().cpu()
    digest = hashlib.sha256(f"{whole.dtype} {tuple(whole.shape)}".encode())
    digest.update(whole.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


class LogpStore:
    """Log-probs by row key, in memory and in a folder.

    Args:
        folder: where the files go; made on the first write.
        flush_every: how many new rows are held back before they are written.
    """

    def __init__(self, folder: Path, flush_every: int = 512) -> None:
        self.folder = folder
        self.flush_every = flush_every
        self._rows: dict[bytes, Tensor] = {}
        self._new: dict[bytes, Tensor] = {}
        self._read: set[str] = set()
        self._read_new_files()

    def get(self, key: bytes, length: int) -> Tensor | None:
        """Log-probs ``[length]`` in float32 on the host, or ``None``."""
        if key not in self._rows:
            # Another process may have written it meanwhile.
            self._read_new_files()
        found = self._rows.get(key)
        if found is not None and len(found) != length:
            raise ValueError(
                f"{self.folder}: a row of {length} tokens is stored with {len(found)} log-probs; the "
                "folder is damaged, delete it"
            )
        return found

    def put(self, key: bytes, logps: Tensor) -> None:
        """Remember the log-probs of a row."""
        value = logps.detach().float().cpu().clone()
        self._rows[key] = self._new[key] = value
        if len(self._new) >= self.flush_every:
            self.flush()

    def flush(self) -> None:
        """Write what is new: to a file beside, then renamed, so that a reader sees all of it or nothing."""
        if not self._new:
            return
        from safetensors.torch import save

        keys = sorted(self._new)
        data = save(
            {
                "keys": torch.tensor([list(key) for key in keys], dtype=torch.uint8),
                "lengths": torch.tensor([len(self._new[key]) for key in keys], dtype=torch.int64),
                "logps": torch.cat([self._new[key] for key in keys]),
            },
            metadata={"format": "lit-align reference log-probs", "version": str(_VERSION)},
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        name = hashlib.sha256(data).hexdigest()[:32] + ".safetensors"
        handle, temporary = tempfile.mkstemp(dir=self.folder, suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.folder / name)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        self._read.add(name)
        self._new.clear()

    def _read_new_files(self) -> None:
        if not self.folder.is_dir():
            return
        from safetensors.torch import load_file

        for path in sorted(self.folder.glob("*.safetensors")):
            if path.name in self._read:
                continue
            stored = load_file(path)
            parts = stored["logps"].split(stored["lengths"].tolist())
            for key, logps in zip(stored["keys"], parts, strict=True):
                self._rows.setdefault(bytes(key.tolist()), logps)
            self._read.add(path.name)
