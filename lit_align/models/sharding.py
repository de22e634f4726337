"""Weights spread over processes: split by tensor parallelism, and gathered layer by layer (FSDP2)."""

import logging
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from lit_align.models.tensor_parallel import DIMENSION, split
from lit_align.runtime.zero_state import gathered, is_partitioned

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


def whole_weights(modules: Iterable[nn.Module | None]) -> dict[nn.Module, dict[str, Tensor]]:
    """The weights of sharded modules on the CPU of process zero, nothing on the others; all call this.

    Returns:
        By module; one that is not sharded, and has its weights itself, is not in it.
    """
    found: dict[nn.Module, Any] = {}
    for module in modules:
        if module is not None and any(isinstance(p, DTensor) for p in module.parameters()):
            options = StateDictOptions(full_state_dict=True, cpu_offload=True)
            whole: dict[str, Any] = get_model_state_dict(module, options=options)
            found[module] = _tied(module, whole)
        elif module is not None and any(is_partitioned(p) for p in module.parameters()):
            found[module] = _tied(module, _put_together(module))
    return found


def _refuse_quantised(scorer: Any) -> Any:
    model = scorer.model
    inner = model.get_base_model() if hasattr(model, "peft_config") else model
    if getattr(inner, "quantization_method", None) is not None:
        raise ValueError(
            "quantised weights cannot be sharded here: leave quantization out, or use the ddp strategy"
        )
    return inner


def _put_together(module: nn.Module) -> dict[str, Tensor]:
    # As ZeRO 3 spreads them; those of one process are the only ones kept.
    state: dict[str, Tensor] = {}
    for name, value in module.state_dict(keep_vars=True).items():
        with gathered(value):
            if torch.distributed.get_rank() == 0:
                state[name] = value.detach().to("cpu", copy=True)
    return state


def _tied(module: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    # Gathered one by one, tied weights have come apart, and would be written twice.
    first: dict[int, str] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if name in state:
            state[name] = state[first.setdefault(id(parameter), name)]
    return state


def layers(model: Any) -> list[nn.Module]:
    """The layers of a model, by the names that transformers gives to what must not be split."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    return [module for module in model.modules() if type(module).__name__ in names]
