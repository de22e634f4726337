"""The reference is an object: every way to have one is a class, and all are called the same.

===============  =============================================================================
`FrozenCopy`     the policy's weights as they are in memory when training starts
`AdapterOff`     the base under a policy with adapters; costs no memory
`NamedAdapter`   another adapter on the policy's base
`FromPath`       another checkpoint
`SharedLayers`   a copy of the last layers; the first are frozen and the policy's own
`EMA`            a reference that follows the policy (TR-DPO)
`Cached`         any fixed one, each row scored once and kept on disk
`NoReference`    none: log-probs of 0
===============  =============================================================================
"""

import logging
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lit_align.batches import Forest
from lit_align.models.config import ModelConfig, QuantizationConfig
from lit_align.models.skeleton import as_on_zero
from lit_align.scoring.adapters import (
    active_adapter,
    adapter_off,
    adapter_on,
    evaluating,
    freeze_adapter,
    has_adapters,
    is_fresh,
    model_digest,
    only_adapters_train,
)
from lit_align.scoring.frozen_copy import EMA, FrozenCopy
from lit_align.scoring.policy import Policy
from lit_align.scoring.reference_base import NoReference, Reference, build_reference
from lit_align.scoring.reference_cache import LogpStore, cache_root, row_key
from lit_align.scoring.shared_layers import SharedLayers

__all__ = [
    "EMA",
    "AdapterOff",
    "Cached",
    "FromPath",
    "FrozenCopy",
    "NamedAdapter",
    "NoReference",
    "Reference",
    "SharedLayers",
    "build_reference",
    "default_reference",
]

logger = logging.getLogger(__name__)


class AdapterOff(Reference):
    """The base under a policy with adapters. No second model, and exactly the base."""

    def _attach(self, policy: Policy, config: ModelConfig | None) -> None:
        if not has_adapters(policy.model):
            raise ValueError(
                "AdapterOff: the policy has no adapters, so switching them off would give the policy itself. "
                "Use FrozenCopy, or give the policy LoRA"
            )
        if not only_adapters_train(policy.model):
            raise ValueError(
                "AdapterOff: weights of the base are trained too (bias, or weights unfrozen by hand), so the "
                "base would move. Use FrozenCopy"
            )

    @contextmanager
    def using(self) -> Iterator[Policy]:
        """The policy with its adapters off."""
        policy = self.policy
        with evaluating(policy), adapter_off(policy.model):
            yield policy

    def digest(self) -> str:
        """Of the base."""
        return model_digest(self.policy.model)


class NamedAdapter(Reference):
    """Another adapter on the policy's base, frozen.

    Args:
        name: an adapter the policy has, or the name to load ``path`` under.
        path: directory or Hub name of an adapter to load.
    """

    def __init__(self, name: str = "reference", path: str | None = None) -> None:
        super().__init__()
        self.name = name
        self.path = path

    def _attach(self, policy: Policy, config: ModelConfig | None) -> None:
        from lit_align.models.sources import resolve

        model: Any = policy.model
        if not has_adapters(model):
            raise ValueError("NamedAdapter: the policy has no adapters; use FromPath for another model")
        if self.path is not None:
            if self.name in model.peft_config:
                raise ValueError(
                    f"NamedAdapter: the policy has an adapter {self.name!r} already; take another name"
                )
            model.load_adapter(resolve(self.path), self.name, is_trainable=False)
        if self.name not in model.peft_config:
            known = ", ".join(model.peft_config)
            raise ValueError(f"NamedAdapter: the policy has no adapter {self.name!r} (it has {known})")
        if self.name == active_adapter(model):
            raise ValueError(
                f"NamedAdapter: {self.name!r} is the adapter that is trained, so the reference would move "
                "with it. Use FrozenCopy for its present weights"
            )
        freeze_adapter(model, self.name)

    @contextmanager
    def using(self) -> Iterator[Policy]:
        """The policy with the other adapter on."""
        policy = self.policy
        with evaluating(policy), adapter_on(policy.model, self.name):
            yield policy

    def digest(self) -> str:
        """Of the base and the adapter."""
        return model_digest(self.policy.model, self.name)


class FromPath(Reference):
    """Another checkpoint, frozen.

    Args:
        path: Hub name, directory or shipped name.
        dtype: dtype of the weights; ``auto`` is the checkpoint's own.
        revision: branch, tag or commit on the Hub.
        trust_remote_code: run Python code that comes with the model.
        adapter: an adapter on top of it.
        quantization: load it in 4 (``nf4``) or 8 (``int8``) bits.
    """

    def __init__(
        self,
        path: str,
        dtype: str = "auto",
        revision: str | None = None,
        trust_remote_code: bool = False,
        adapter: str | None = None,
        quantization: Literal["nf4", "int8"] | None = None,
    ) -> None:
        super().__init__()
        self.path = path
        self.dtype = dtype
        self.revision = revision
        self.trust_remote_code = trust_remote_code
        self.adapter = adapter
        self.quantization = quantization
        self.frozen: Policy | None = None

    def _attach(self, policy: Policy, config: ModelConfig | None) -> None:
        from lit_align.models.build import build_causal_lm

        description = ModelConfig(
            path=self.path,
            dtype=self.dtype,
            attn_implementation=config.attn_implementation if config is not None else None,
            revision=self.revision,
            trust_remote_code=self.trust_remote_code,
            adapter=self.adapter,
            quantization=QuantizationConfig(self.quantization) if self.quantization else None,
        )
        model = build_causal_lm(description)
        ours, theirs = _vocabulary(policy.model), _vocabulary(model)
        if theirs < ours:
            logger.warning(
                "the reference %s has %d token embeddings, the policy %d: do they share a tokenizer?",
                self.path,
                theirs,
                ours,
            )
        self.frozen = Policy(model).requires_grad_(False).eval()

    @contextmanager
    def using(self) -> Iterator[Policy]:
        """The other model."""
        if self.frozen is None:
            raise RuntimeError("FromPath is not attached to a policy: call attach(policy) first")
        yield self.frozen

    def digest(self) -> str:
        """Of the checkpoint's weights."""
        assert self.frozen is not None
        adapter = active_adapter(self.frozen.model) if has_adapters(self.frozen.model) else None
        return model_digest(self.frozen.model, adapter)


class Cached(Reference):
    """Any fixed reference, each row scored once: later epochs and reruns cost no forward pass.

    A row's log-probs are kept under the ids of its prompt and completion (so another tokenizer, template or
    truncation is another row), in a folder named by a digest of the reference's weights and the precision
    they were computed in. Under dropout-free scoring nothing else matters.

    Args:
        inner: the reference to ask; by default the policy's own default.
        path: folder to keep them in; by default ``reference`` under ``LIT_ALIGN_CACHE``.
    """

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


def default_reference(policy: Policy) -> Reference:
    """The reference that makes the first DPO loss ln 2.

    New adapters leave the model as it is until they learn, so the base with the adapter off is where training
    starts, and costs nothing. An adapter that has been trained already (one that is continued, or came with
    a module in memory) does change the model: there the start is that adapter, and the bare base would be
    another model. Then, and without adapters, it is a frozen copy of the weights in memory.

    Args:
        policy: the policy, before training.
    """
    model = policy.model
    if has_adapters(model) and as_on_zero(lambda: is_fresh(model)) and only_adapters_train(model):
        return AdapterOff()
    return FrozenCopy()


def _vocabulary(model: Any) -> int:
    return int(model.get_input_embeddings().weight.shape[0])
