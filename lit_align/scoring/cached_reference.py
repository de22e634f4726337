"""A reference that scores each row once, and remembers."""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from lit_align.batches import Forest
from lit_align.models.config import ModelConfig
from lit_align.scoring.adapter_references import default_reference
from lit_align.scoring.frozen_copy import EMA
from lit_align.scoring.policy import Policy
from lit_align.scoring.reference_base import Reference
from lit_align.scoring.reference_cache import LogpStore, cache_root, row_key


class Cached(Reference):
    """Any fixed reference, each row scored once: later epochs and reruns cost no forward pass.

    A row's log-probs are kept under the ids of its prompt and completion (so another tokenizer, template or
    truncation is another row), in a folder named by a digest of the reference's weights and the precision
    they were computed in. Under dropout-free scoring nothing else matters.

    Args:
        inner: the reference to ask; by default the policy's own default.
        path: folder to keep them in; by default ``reference`` under ``LIT_ALIGN_CACHE``.
    """

    moves = False

    def __init__(self, inner: Reference | None = None, path: str | None = None) -> None:
        super().__init__()
        if isinstance(inner, EMA | Cached):
            raise ValueError(f"Cached: the log-probs of {type(inner).__name__} cannot be cached (again)")
        self.inner = inner
        self.default: Reference | None = None
        self.path = path
        self._stores: dict[str, LogpStore] = {}
        self._digest: str | None = None

    def _attach(self, policy: Policy, config: ModelConfig | None) -> None:
        if self.inner is None:
            # Beside inner, which says what the user wrote.
            self.default = default_reference(policy)
        self.asked.attach(policy, config)

    @contextmanager
    def using(self) -> Iterator[Policy]:
        """What the one that is asked uses."""
        with self.asked.using() as scorer:
            yield scorer

    @property
    def asked(self) -> Reference:
        """The reference that is asked where the store has nothing."""
        found = self.inner if self.inner is not None else self.default
        if found is None:
            raise RuntimeError("Cached is not attached to a policy: call attach(policy) first")
        return found

    def _score(self, batch: Forest, temperature: float) -> Tensor:
        store = self._store(batch, temperature)
        keys = [row_key(*row) for row in batch.sequences()]
        lengths = batch.completion_lengths
        absent = [c for c, key in enumerate(keys) if store.get(key, lengths[c]) is None]
        if absent:
            self._fill(store, batch, sorted({batch.parents[c] for c in absent}), temperature)
        found = [store.get(key, length) for key, length in zip(keys, lengths, strict=True)]
        parts = [logps for logps in found if logps is not None]
        return torch.cat([torch.zeros(0), *parts]).to(batch.device)

    def _fill(self, store: LogpStore, batch: Forest, prompts: list[int], temperature: float) -> None:
        part = batch.select(prompts) if len(prompts) < batch.num_prompts else batch
        logps = self.asked.score(part, temperature).float().cpu()
        for row, values in zip(part.sequences(), logps.split(list(part.completion_lengths)), strict=True):
            store.put(row_key(*row), values)

    def _store(self, batch: Forest, temperature: float) -> LogpStore:
        kind = batch.device.type
        autocast = str(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else "none"
        name = autocast.removeprefix("torch.") + (f"-t{temperature:g}" if temperature != 1.0 else "")
        if name not in self._stores:
            if self._digest is None:
                self._digest = self.asked.digest()
            root = Path(self.path).expanduser() if self.path else cache_root() / "reference"
            store = LogpStore(root / f"{self._digest[:32]}-{name}")
            self._stores[name] = store
            # Whoever forgets to flush loses nothing: written when the reference or the process goes.
            weakref.finalize(self, store.flush)
        return self._stores[name]

    def flush(self) -> None:
        """Write the rows that are still held back."""
        for store in self._stores.values():
            store.flush()

    def digest(self) -> str:
        """Of what it asks."""
        return self.asked.digest()
