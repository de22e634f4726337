"""A reference whose first layers are the policy's own."""

from collections.abc import Iterator
from contextlib import contextmanager

from lit_align.models.config import ModelConfig
from lit_align.models.reference_model import create_reference_model
from lit_align.scoring.adapters import model_digest
from lit_align.scoring.policy import Policy
from lit_align.scoring.reference_base import Reference


class SharedLayers(Reference):
    """The policy's weights at its start, the first layers shared with it and frozen in both.

    Args:
        num_shared_layers: how many layers, from the first; the embeddings before them are shared too.
        pattern: name of a layer with ``{layer}`` for its number, where layers are not found by themselves.
    """

    moves = False

    def __init__(self, num_shared_layers: int, pattern: str | None = None) -> None:
        super().__init__()
        self.num_shared_layers = num_shared_layers
        self.pattern = pattern
        self.frozen: Policy | None = None

    def _attach(self, policy: Policy, config: ModelConfig | None) -> None:
        model = create_reference_model(policy.model, self.num_shared_layers, self.pattern)
        self.frozen = Policy(model, layout=policy.layout).eval()

    @contextmanager
    def using(self) -> Iterator[Policy]:
        """The model with the copied layers."""
        if self.frozen is None:
            raise RuntimeError("SharedLayers is not attached to a policy: call attach(policy) first")
        yield self.frozen

    def digest(self) -> str:
        """Of shared and copied weights."""
        if self.frozen is None:
            raise RuntimeError("SharedLayers is not attached to a policy: call attach(policy) first")
        return model_digest(self.frozen.model)
