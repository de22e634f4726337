"""Weights that processes hold in parts, put together in one: under every strategy there is."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor

from lit_align.runtime.zero_state import gathered, is_partitioned

# FSDP of the first generation puts a module into one of its own, under this name.
_WRAPPED = "_fsdp_wrapped_module."


def whole_weights(
    modules: Iterable[nn.Module | None], root: nn.Module | None = None
) -> dict[nn.Module, dict[str, Tensor]]:
    """The weights of sharded modules on the CPU of process zero, nothing on the others; all call this.

    Args:
        modules: whose weights are wanted.
        root: what the strategy made of the LightningModule around them. FSDP of the first generation keeps
            weights in tensors of which only it knows the parts.

    Returns:
        By module; one that is not sharded, and has its weights itself, is not in it.
    """
    found: dict[nn.Module, Any] = {}
    for module in modules:
        if module is None:
            continue
        if root is not None and FullyShardedDataParallel.fsdp_modules(root):
            found[module] = _unwrapped(root, module)
        elif any(isinstance(p, DTensor) for p in module.parameters()):
            options = StateDictOptions(full_state_dict=True, cpu_offload=True)
            whole: dict[str, Any] = get_model_state_dict(module, options=options)
            found[module] = _tied(module, whole)
        elif any(is_partitioned(p) for p in module.parameters()):
            found[module] = _tied(module, _put_together(module))
    return found


@contextmanager
def without_wrappers(modules: Iterable[nn.Module | None]) -> Iterator[None]:
    """Inside the block, modules that FSDP of the first generation put between those of a model are not seen.

    Libraries find layers by their names, which those modules lengthen. Nothing may be computed inside.
    """
    places = [
        (parent, name, child)
        for module in modules
        if module is not None
        for parent in module.modules()
        for name, child in parent.named_children()
        if isinstance(child, FullyShardedDataParallel) and not isinstance(parent, FullyShardedDataParallel)
    ]
    for parent, name, child in places:
        parent._modules[name] = child.module
    try:
        yield
    finally:
        for parent, name, child in places:
            parent._modules[name] = child


def _unwrapped(root: nn.Module, module: nn.Module) -> dict[str, Tensor]:
    # Out of FSDP of the first generation, one wrapped module after another.
    names = {child: f"{name}." if name else "" for name, child in root.named_modules()}
    path = names[module].replace(_WRAPPED, "")
    state: dict[str, Tensor] = {}
    for unit in FullyShardedDataParallel.fsdp_modules(root):
        with FullyShardedDataParallel.summon_full_params(unit, recurse=False, writeback=False):
            # What two modules share stays shared.
            copies: dict[int, Tensor] = {}
            for name, value in _own(unit, names[unit]) if torch.distributed.get_rank() == 0 else ():
                plain = name.replace(_WRAPPED, "")
                if plain.startswith(path):
                    copy = copies.setdefault(id(value), value.detach().to("cpu", copy=True))
                    state[plain.removeprefix(path)] = copy
    return state


def _own(module: nn.Module, path: str) -> Iterator[tuple[str, Tensor]]:
    tensors = {**module._parameters, **module._buffers}
    for name, value in tensors.items():
        if value is not None and name not in module._non_persistent_buffers_set:
            yield path + name, value
    for name, child in module.named_children():
        if not isinstance(child, FullyShardedDataParallel):
            yield from _own(child, f"{path}{name}.")


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
