"""A model that processes hold in parts (FSDP2, tensor parallelism), put together again."""

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from lit_align.callbacks.sharding import is_sharded, reshard
from lit_align.models.tensor_parallel import Local

_HOOKS = (
    "_backward_pre_hooks",
    "_backward_hooks",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)


@torch.no_grad()
def whole_model(model: nn.Module, keep: bool = True) -> Any:
    """The model itself where it is whole; else a copy on the host with whole weights, in no trainer's way.

    The copy shares everything but weights and modules with the model (configuration, adapters' settings),
    and has none of the hooks that gather shards. Weights come one at a time, so that no device ever holds
    more than its shards and one of them. Collective.

    Args:
        model: of transformers, or of peft around one.
        keep: whether this process wants it; others take part and get ``None``.
    """
    if not is_sharded(model):
        return model if keep else None
    reshard(model)
    tensors: dict[int, Any] = {}
    for value in (*model.parameters(), *model.buffers()):
        gathered = value.full_tensor() if isinstance(value, DTensor) else value
        if keep:
            # A weight that two modules share is found once, and shared by the copies.
            copied = gathered.detach().to("cpu", copy=True)
            if isinstance(value, nn.Parameter):
                copied = nn.Parameter(copied, requires_grad=value.requires_grad)
            tensors[id(value)] = copied
    return _mirror(model, tensors, {}) if keep else None


def _mirror(module: nn.Module, tensors: dict[int, Tensor], made: dict[int, nn.Module]) -> nn.Module:
    if id(module) in made:
        return made[id(module)]
    # fully_shard makes each module an object of a new class, between FSDPModule and its own; so does the
    # splitting of products.
    kind: Any = next(c for c in type(module).__mro__ if not issubclass(c, FSDPModule | Local))
    copy = kind.__new__(kind)
    made[id(module)] = copy
    # torch notes in a module that it was sharded, under names of this kind.
    vars(copy).update({k: v for k, v in vars(module).items() if not str(k).startswith("__composable_api")})
    for hooks in _HOOKS:
        vars(copy)[hooks] = OrderedDict()
    for group in ("_parameters", "_buffers"):
        entries = vars(module)[group].items()
        vars(copy)[group] = {k: None if v is None else tensors[id(v)] for k, v in entries}
    children = vars(module)["_modules"].items()
    vars(copy)["_modules"] = {k: None if m is None else _mirror(m, tensors, made) for k, m in children}
    return copy


def sharded_copy(model: nn.Module) -> Any:
    """A frozen copy of a sharded model as it is now, in shards of its own over all processes. Collective."""
    from torch.distributed.fsdp import fully_shard

    from lit_align.models.sharding import layers

    mesh = next(p.device_mesh for p in model.parameters() if isinstance(p, DTensor))
    if mesh.ndim > 1:
        # Of two dimensions FSDP2 would hold copies along the first.
        mesh = DeviceMesh(mesh.device_type, mesh.mesh.flatten())
    copy = whole_model(model).requires_grad_(False).eval()
    inner = copy.get_base_model() if hasattr(copy, "peft_config") else copy
    for layer in (*layers(inner), copy):
        fully_shard(layer, mesh=mesh)
    return copy
