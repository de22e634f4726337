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
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from lit_align.models.config import ModelConfig, QuantizationConfig
from lit_align.scoring.adapter_references import AdapterOff, NamedAdapter, default_reference
from lit_align.scoring.adapters import active_adapter, has_adapters, model_digest
from lit_align.scoring.cached_reference import Cached
from lit_align.scoring.frozen_copy import EMA, FrozenCopy
from lit_align.scoring.policy import Policy
from lit_align.scoring.reference_base import NoReference, Reference, build_reference
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

    moves = False

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


def _vocabulary(model: Any) -> int:
    return int(model.get_input_embeddings().weight.shape[0])
