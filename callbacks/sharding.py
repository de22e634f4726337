"""Looking at a model, and changing its weights, where processes hold a part of it each (FSDP2)."""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

T = TypeVar("T")


def refuse_spread(trainer: Any, owner: str) -> None:
    """Say so where a strategy gives no whole weights outside of a step.

    Raises:
        ValueError: under FSDP of the first generation, or DeepSpeed's ZeRO 3.
    """
    strategy = trainer.strategy
    # By name, because Lightning comes in two packages.
    wrapped = any(kind.__name__ == "FSDPStrategy" for kind in type(strategy).__mro__)
    if wrapped or getattr(strategy, "zero_stage_3", False):
        what = "FSDPStrategy" if wrapped else f"{type(strategy).__name__}, ZeRO 3,"
        raise ValueError(
            f"{owner} reads the model between steps, and {what} has no whole weights there; use fsdp2 "
            "(ModelParallelStrategy), zero2 or ddp"
        )


def is_sharded(module: nn.Module) -> bool:
    """Whether any weight is spread over processes."""
    return any(isinstance(p, DTensor) for p in module.parameters())


def run_inside(module: nn.Module, model: nn.Module, action: Callable[[], T]) -> T:
    """Call ``action``, which runs ``model``, with the weights that lie outside of its layers gathered.

    FSDP2 gathers weights when the ``forward`` of the module they were sharded with runs. Where that is one
    around the model (as the policy of this package), the model's own ``forward`` would meet shards, and so
    would the ``generate`` of a model of peft, which goes past its ``forward``. So ``action`` runs as the
    outermost one's ``forward``. Elsewhere it is simply called.

    Args:
        module: the LightningModule.
        model: inside of it.
        action: the same forward passes on all processes.
    """
    sharded = (m for m in module.modules() if isinstance(m, FSDPModule))
    root: Any = next((m for m in sharded if any(inner is model for inner in m.modules())), None)
    if root is None:
        return action()
    results: list[T] = []

    def forward() -> None:
        del root.forward  # the action may call the root itself
        results.append(action())

    # An attribute of the instance hides the method; without it the method is seen again.
    root.forward = forward
    try:
        root()
    finally:
        vars(root).pop("forward", None)
    return results[0]


def reshard(module: nn.Module) -> None:
    """Put the shards back in the place of weights that a forward pass gathered.

    Until then the module's parameters are the gathered copies, and what is written to them is lost.
    """
    for child in module.modules():
        if isinstance(child, FSDPModule):
            child.reshard()


def trained_weights(module: nn.Module) -> dict[str, Tensor]:
    """The parameters that require a gradient, by their names; shards where they are sharded."""
    reshard(module)
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def whole(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Sharded tensors put together, on the host; others as they are. Collective."""
    return {k: v.full_tensor().cpu() if isinstance(v, DTensor) else v for k, v in tensors.items()}


def spread_like(tensors: dict[str, Tensor], places: dict[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors on the device, and in the shards, of others of the same names. Collective."""
    found: dict[str, Tensor] = {}
    for name, value in tensors.items():
        place = places[name]
        value = value.to(place.device)
        if isinstance(place, DTensor):
            value = distribute_tensor(value, place.device_mesh, place.placements)
        found[name] = value
    return found


@torch.no_grad()
def mix_in(targets: Iterable[Tensor], sources: Iterable[Tensor], share: float) -> None:
    """``target <- (1 - share) target + share source``, each in place."""
    for target, source in zip(targets, sources, strict=True):
        # In float32, because a small share of a bfloat16 weight is rounded away.
        target.copy_(target.float().lerp(source.detach().float(), share))
