"""Weights spread over processes: split by tensor parallelism, and gathered layer by layer (FSDP2)."""

import logging
from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from lit_align.models.tensor_parallel import DIMENSION, split

logger = logging.getLogger(__name__)


def shard(scorer: nn.Module, mesh: DeviceMesh) -> None:
    """Shard a scorer in place: each decoder layer is a group, all the rest is the scorer's own.

    The scorer is the root, not the model inside it: it uses the weights of embedding and head outside of
    the model's own ``forward``, so they have to be whole as long as the scorer runs. Being part of the
    root, no trainable weight (a score head, an adapter) can stay outside of every group, where its
    gradients would never be summed over processes. Adapters are part of the layers that they change.

    Args:
        scorer: with its model as ``model``; frozen or not. Of one that ``shares_model`` with another scorer
            only the value head is sharded.
        mesh: one dimension, over which the weights are spread; or Lightning's two, ``data_parallel`` of
            that kind, and ``tensor_parallel``, over which the layers' products are split first.

    Raises:
        ValueError: the model is quantised, which cannot be spread, or cannot be split.
    """
    if mesh.ndim > 1:
        if mesh[DIMENSION].size() > 1:
            _refuse_quantised(scorer)
            split(scorer, mesh[DIMENSION])
        mesh = mesh["data_parallel"]
    head = getattr(scorer, "value_head", None)
    if head is not None:
        # A group of its own, because it is in float32 whatever the model is in.
        fully_shard(head, mesh=mesh)
    if getattr(scorer, "shares_model", False):
        return
    inner = _refuse_quantised(scorer)
    found = layers(inner)
    if not found:
        logger.warning("%s does not tell its layers: it is gathered as a whole", type(inner).__name__)
    for layer in found:
        fully_shard(layer, mesh=mesh)
    # Of a frozen one no backward pass puts the root back into pieces, and an average over weights must find
    # them in the same pieces as the policy's.
    frozen = not any(p.requires_grad for p in scorer.parameters())
    fully_shard(scorer, mesh=mesh, reshard_after_forward=True if frozen else None)
    # Called from outside, by heads that stand beside the scorer, with whole weights too.
    for method in ("token_states", "last_states", "scored_logits"):
        register_fsdp_forward_method(scorer, method)


def separate(scorers: Iterable[nn.Module]) -> None:
    """Give each scorer its own copy of what it shares with one before it, in place.

    A sharded parameter belongs to one root, which gathers it; another scorer could not use it.
    """
    owned: set[int] = set()
    copies: dict[int, nn.Parameter] = {}
    for scorer in scorers:
        if getattr(scorer, "shares_model", False):
            continue
        for module in scorer.modules():
            for key, parameter in module._parameters.items():
                if parameter is not None and id(parameter) in owned:
                    copy = nn.Parameter(parameter.detach().clone(), requires_grad=parameter.requires_grad)
                    module._parameters[key] = copies.setdefault(id(parameter), copy)
        owned |= {id(parameter) for parameter in scorer.parameters()}


def _refuse_quantised(scorer: Any) -> Any:
    model = scorer.model
    inner = model.get_base_model() if hasattr(model, "peft_config") else model
    if getattr(inner, "quantization_method", None) is not None:
        raise ValueError(
            "quantised weights cannot be sharded here: leave quantization out, or use the ddp strategy"
        )
    return inner


def layers(model: Any) -> list[nn.Module]:
    """The layers of a model, by the names that transformers gives to what must not be split."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    return [module for module in model.modules() if type(module).__name__ in names]
