"""Optimiser and schedule from plain configuration."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn
from torch.optim import Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lit_align.algorithms.row_adamw import RowAdamW, make_sparse
from lit_align.runtime import trust

Schedule = Literal["constant", "linear", "cosine"]


@dataclass
class OptimConfig:
    """How the weights are updated; the learning rate itself is the algorithm's ``lr``."""

    name: str | Callable[..., Optimizer] = "torch.optim.AdamW"
    """Optimiser: a dotted path to a class or function, or (in Python) the callable itself."""

    weight_decay: float = 0.0
    """Weight decay of matrices; norms and biases are never decayed."""

    schedule: Schedule = "linear"
    """Learning rate after the warm-up: constant, or falling to ``final_lr_ratio`` at the last step."""

    warmup: float = 0.0
    """Length of the linear warm-up: a share of all steps below 1, a number of steps from 1 on."""

    final_lr_ratio: float = 0.0
    """Learning rate of the last step, as a share of ``lr``."""

    micro_batch_tokens: int | None = None
    """Tokens that go through the model at a time, as whole prompts with their completions; by default the
    whole batch. Less needs less memory, and changes no number: the gradients of the parts are summed. (The
    load-balancing loss of a mixture of experts is no sum over tokens; it is taken for each part.)"""

    sparse_embedding: bool = False
    """Make the gradient of an untied input embedding for the tokens of a step only, and move only the rows
    that ever had one: the same numbers as without, faster where the vocabulary is large and a CPU trains. It
    shows in ``.grad`` of the embedding, which is a sparse tensor then. For one process, and AdamW without
    weight decay."""

    extra: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the optimiser, for example ``{betas: [0.9, 0.95]}``."""

    def __post_init__(self) -> None:
        if self.warmup < 0:
            raise ValueError(
                f"warmup is {self.warmup}; it is a share of all steps (0.1) or a number of steps (100)"
            )
        if self.micro_batch_tokens is not None and self.micro_batch_tokens < 1:
            raise ValueError(
                f"micro_batch_tokens is {self.micro_batch_tokens}; it is a number of tokens, or null"
            )
        if self.schedule not in ("constant", "linear", "cosine"):
            raise ValueError(f"schedule is {self.schedule!r}; choose constant, linear or cosine")


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: matrices with decay, vectors and scalars without.

    Norm weights and biases have one dimension at most, in every architecture.
    """
    trainable = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(module: nn.Module, config: OptimConfig, lr: float) -> Optimizer:
    """The optimiser over the trainable parameters of ``module``.

    Raises:
        ValueError: if nothing is trainable, or the optimiser's name leads nowhere.
    """
    groups = parameter_groups(module, config.weight_decay)
    if not groups:
        raise ValueError("no parameter of the policy is trainable; check lora, adapter and requires_grad")
    if config.sparse_embedding:
        if config.name not in ("torch.optim.AdamW", AdamW):
            raise ValueError(
                f"sparse_embedding goes with torch.optim.AdamW, not {config.name}: leave one out"
            )
        make_sparse(module, config.weight_decay, config.extra)
        return _clippable(RowAdamW(groups, lr=lr, fused=True, **config.extra))
    factory: Any = _resolve(config.name) if isinstance(config.name, str) else config.name
    if (
        factory not in (Adam, AdamW)
        or {"fused", "foreach", "capturable", "differentiable"} & config.extra.keys()
    ):
        return factory(groups, lr=lr, **config.extra)
    return _clippable(factory(groups, lr=lr, fused=True, **config.extra))


def _clippable(optimizer: Any) -> Optimizer:
    # Lightning refuses to clip for an optimiser that says it unscales gradients by itself. A gradient
    # scaler unscales them before the step where the optimiser does not say so.
    optimizer._step_supports_amp_scaling = False
    return optimizer


def build_schedule(optimizer: Optimizer, config: OptimConfig, total_steps: float) -> LambdaLR:
    """Warm-up and decay as a factor on the learning rate, stepped once per optimiser step.

    Args:
        optimizer: whose learning rate is scaled.
        config: shape of the schedule.
        total_steps: all optimiser steps of the run; may be infinite for a constant schedule.
    """
    share = config.warmup < 1
    if math.isinf(total_steps) and (config.schedule != "constant" or (share and config.warmup)):
        raise ValueError(
            f"schedule {config.schedule!r} with warmup {config.warmup} needs to know the last step: "
            "give the trainer max_steps (or max_epochs, where data is not streamed), or take "
            "optim.schedule: constant with warmup 0 or a number of steps"
        )
    warmup = config.warmup * total_steps if share and config.warmup else config.warmup
    return LambdaLR(optimizer, lambda step: _factor(step, warmup, total_steps, config))


def _factor(step: int, warmup: float, total: float, config: OptimConfig) -> float:
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if config.schedule == "constant":
        return 1.0
    progress = min(1.0, (step - warmup) / max(1.0, total - warmup))
    fall = 1 - progress if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return config.final_lr_ratio + (1 - config.final_lr_ratio) * fall


def _resolve(path: str) -> Callable[..., Optimizer]:
    if "." not in path:
        raise ValueError(f"optimiser {path!r} is not a dotted path; did you mean 'torch.optim.{path}'?")
    return trust.load(path)
