"""Accumulated gradients, wherever a strategy keeps them: scaled as one, just before they are used."""

from collections.abc import Iterable
from typing import Any, Protocol, runtime_checkable

import torch
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer


@runtime_checkable
class ScalesGradients(Protocol):
    """A strategy that keeps gradients out of the parameters, and scales them itself."""

    def scale_gradients(self, scale: Tensor) -> None:
        """Let the next optimiser step, its clipping included, see the gradients times ``scale``, a scalar."""

    def forget_gradients(self) -> None:
        """Let go of what backward passes have left."""


def scale_gradients(strategy: Any, optimizer: Optimizer, scale: Tensor) -> None:
    """Multiply the gradients of the window, where the optimiser or the strategy has them.

    Args:
        strategy: the trainer's.
        optimizer: about to take its step.
        scale: scalar; the same on all processes.

    Raises:
        RuntimeError: there are none, so that the step would go along something else.
    """
    if isinstance(strategy, ScalesGradients):
        strategy.scale_gradients(scale)
        return
    trained = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    for p in trained:
        if p.grad.is_sparse:
            # One row each, so that norms are those of the whole.
            p.grad = p.grad.coalesce()
    grads = [numbers(p.grad) for p in trained]
    local = [g.to_local() if isinstance(g, DTensor) else g for g in grads]
    if not local:
        raise RuntimeError(
            f"no gradients to average: {type(strategy).__name__} keeps them out of the parameters; use ddp, "
            "fsdp2, zero2 or zero3"
        )
    torch._foreach_mul_(local, scale)


def numbers(grad: Tensor) -> Tensor:
    """The numbers of a gradient that are not zero by construction: of a sparse one, those of its rows."""
    return grad._values() if grad.is_sparse else grad


def norm_of_step(strategy: Any) -> float | None:
    """The norm of all gradients of the last step, before clipping, as DeepSpeed found it.

    Args:
        strategy: the trainer's; ours or Lightning's own DeepSpeed.

    Returns:
        Infinite where gradients that were not finite left the step out; ``None`` where nobody has looked, and
        of other strategies, whose gradients are with the parameters before the step.
    """
    engine: Any = getattr(strategy, "deepspeed_engine", None)
    norm = engine.get_global_grad_norm() if hasattr(engine, "get_global_grad_norm") else None
    return None if norm is None else float(norm)


def forget_gradients(strategy: Any, optimizer: Any) -> None:
    """Let go of the gradients of a window, whether a step was taken with them or not.

    Args:
        strategy: the trainer's.
        optimizer: whose parameters have them.
    """
    optimizer.zero_grad()
    if isinstance(strategy, ScalesGradients):
        strategy.forget_gradients()


def check_strategy(strategy: Any) -> None:
    """Refuse strategies whose gradients cannot be divided by the weight of a window.

    Raises:
        ValueError: Lightning's own DeepSpeed, or FSDP of the first generation.
    """
    if isinstance(strategy, ScalesGradients):
        return
    if isinstance(strategy, DeepSpeedStrategy):
        raise ValueError(
            "Lightning's DeepSpeedStrategy averages over micro-batches and processes, whatever they weigh: "
            "use --trainer.strategy zero2 or zero3 (lit_align.runtime.zero_strategy.ZeroStrategy in Python), "
            "which is DeepSpeed too"
        )
    if isinstance(strategy, FSDPStrategy):
        raise ValueError("FSDPStrategy is FSDP of the first generation: use --trainer.strategy fsdp2")


def steps_together(strategy: Any, parameters: Iterable[Tensor]) -> bool:
    """Whether every forward or backward pass waits for all processes, so that all must make equally many."""
    return isinstance(strategy, ScalesGradients) or any(isinstance(p, DTensor) for p in parameters)
