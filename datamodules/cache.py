"""Tokenised rows on disk, found again by content.

The key is a digest of the rows' content, the tokenizer and every option that shapes the result, so a
changed row, template or length is another entry and nothing is ever stale. An entry is one safetensors
file, written beside its name and renamed, with the report of the run that made it.
"""

import hashlib
import json
import os
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from lit_align.datamodules.table import TokenTable

#: Raise when the same rows and options would give other tokens than before.
FORMAT = 1


def cache_folder() -> Path:
    """``LIT_ALIGN_CACHE``, or ``~/.cache/lit-align``; tokens lie in ``tokens/`` below it."""
    root = os.environ.get("LIT_ALIGN_CACHE")
    return (Path(root) if root else Path.home() / ".cache" / "lit-align") / "tokens"


def tokenizer_digest(tokenizer: Any) -> str:
    """A digest of all that decides how a tokenizer turns text into ids."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        state = json.loads(backend.to_str())
        # The state of the last call, not of the tokenizer.
        state.pop("padding", None)
        state.pop("truncation", None)
    else:
        state = {"class": type(tokenizer).__qualname__, "vocabulary": tokenizer.get_vocab()}
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return digest_of([state, special, tokenizer.chat_template, tokenizer("a")["input_ids"]])


def digest_of(value: Any) -> str:
    """SHA-256 of plain data."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=repr).encode()).hexdigest()


@dataclass(frozen=True)
class TokenCache:
    """Entries in one directory, or in memory where there is none or it cannot be written.

    Attributes:
        folder: where they lie, made when needed; ``None`` for memory alone.
        memory: entries that are on no disk.
    """

    folder: Path | None
    memory: dict[str, tuple[TokenTable, Counter[str]]] = field(default_factory=dict)

    def load(self, key: str) -> tuple[TokenTable, Counter[str]] | None:
        """An entry with its report, or ``None`` when there is none that can be read."""
        from safetensors import SafetensorError, safe_open

        if self.folder is None or key in self.memory:
            return self.memory.get(key)
        path = self.folder / f"{key}.safetensors"
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                report = Counter(json.loads(file.metadata()["report"]))
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            return None
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            rank_zero_warn(f"{path} is damaged ({error}); its rows are tokenised again")
            return None
        return TokenTable.from_tensors(tensors), report

    def save(self, key: str, table: TokenTable, report: Counter[str]) -> None:
        """Write an entry, whole or not at all; keep it in memory when it cannot be written."""
        if self.folder is None or not _write(self.folder / f"{key}.safetensors", table, report):
            self.memory[key] = (table, report)


def _write(path: Path, table: TokenTable, report: Counter[str]) -> bool:
    from safetensors.torch import save

    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # In the same directory: a rename across file systems is a copy, which can be cut off.
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(save(table.tensors(), metadata={"report": json.dumps(dict(report))}))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        rank_zero_warn(
            f"{path.parent} cannot be written ({error}); tokens stay in memory and are made again next time. "
            "LIT_ALIGN_CACHE names another directory"
        )
        return False
    return True
