"""The average over an accumulation window and all processes, whatever its micro-batches weigh."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lit_align.models.tensor_parallel import equalise
from lit_align.outputs import LossOutput
from lit_align.runtime.data_place import data_place
from lit_align.runtime.gradients import scale_gradients


def average_gradients(module: Any, window: Sequence[Tensor], optimizer: Optimizer) -> None:
    """Make the gradient of the sum that of the average, and count the tokens.

    Args:
        module: an :class:`~lit_align.algorithms.base.AlignModule` in training.
        window: of each micro-batch its weight and its tokens, ``[2]``.
        optimizer: about to take its step.
    """
    trainer = module.trainer
    weight, tokens = torch.stack(list(window)).sum(0)
    place = data_place(trainer)
    if trainer.world_size > 1:
        both = trainer.strategy.reduce(torch.stack((weight, tokens)), reduce_op="sum")
        weight, tokens = both / place.copies
    module.tokens_seen += tokens.long()
    # Lightning divides by the accumulation factor, data parallelism by the number of its processes.
    factor = place.size * trainer.accumulate_grad_batches
    scale = torch.where(weight > 0, factor / weight, torch.zeros_like(weight))
    scale_gradients(trainer.strategy, optimizer, scale)
    equalise(p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None)


def average_of(output: LossOutput) -> Tensor:
    """The average that a sum and its weight stand for."""
    # A batch without weight has nothing to say; its total is 0 and so is its average.
    return output.total / output.weight.clamp_min(torch.finfo(torch.float32).tiny)
