"""A batch in parts that fit into memory, whose gradients add up to that of the whole."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from lit_align.batches import Forest
from lit_align.outputs import LossOutput
from lit_align.runtime.gradients import forget_gradients, steps_together
from lit_align.scoring.head_gradient import HeadGradient
from lit_align.scoring.loss_scale import scaled_losses


def micro_batches(batch: Forest, tokens: int | None) -> list[Forest]:
    """Cut a forest into parts of whole trees, in order.

    Args:
        batch: the forest.
        tokens: a part holds at most this many tokens, each prompt counted once, unless a tree alone has more;
            ``None`` for one part.
    """
    if tokens is None:
        return [batch]
    sizes = list(batch.prompt_lengths)
    for length, parent in zip(batch.completion_lengths, batch.parents, strict=True):
        sizes[parent] += length
    parts: list[list[int]] = [[]]
    room = tokens
    for prompt, size in enumerate(sizes):
        if size > room and parts[-1]:
            parts.append([])
            room = tokens
        parts[-1].append(prompt)
        room -= size
    return [batch] if len(parts) == 1 else [batch.select(part) for part in parts]


class WithGradientOf(Function):
    """One number, with the gradient of another: what is reported, and what is descended."""

    @staticmethod
    def forward(ctx: Any, total: Tensor, value: Tensor) -> Tensor:
        """``value``, whose derivative by ``total`` is 1."""
        return value.detach().clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        """All of it belongs to the total."""
        return grad, None


def run_parts(module: Any, batch: Forest, batch_idx: int, logging: bool) -> list[LossOutput]:
    """Run a batch through an algorithm in parts; all but the last leave gradients, and no graph.

    Args:
        module: an :class:`~lit_align.algorithms.base.AlignModule` in training.
        batch: of this step.
        batch_idx: its number, which tells where an accumulation window starts.
        logging: whether statistics will be reported.

    Returns:
        What each part gave, the last with its graph.
    """
    tokens = module.optim.micro_batch_tokens
    if module.score_options(logging=False).get("couples_batch"):
        tokens = None
    parts = micro_batches(batch, tokens)
    together = steps_together(module.trainer.strategy, module.policy.parameters())
    spare = _spare_parts(module, len(parts)) if together else 0
    passes = len(parts) + spare
    if passes > 1:
        _forget_gradients(module, batch_idx)
    for _ in range(spare):
        _backward_now(module, parts[0], logging, share=0.0)
    # Where a pass moves gradients between processes, each has to bring those of all weights.
    apart = together and passes > 1
    head = nullcontext(HeadGradient()) if apart else _one_head_gradient(module.policy, len(parts))
    with scaled_losses(_loss_scale(module)), head as gradient:
        outputs = [_backward_now(module, part, logging) for part in parts[:-1]]
        gradient.last = True
        outputs.append(module._run(parts[-1], logging))
    # Not of the spare ones, which are rows that were counted already.
    for output in outputs:
        module.observe(output)
    return outputs


def _loss_scale(module: Any) -> float:
    # To read it is to wait for the device.
    if module.loss_scale is None:
        scaler = getattr(module.trainer.precision_plugin, "scaler", None)
        module.loss_scale = 1.0 if scaler is None else float(scaler.get_scale())
    scale: float = module.loss_scale
    return scale


def _backward_now(module: Any, part: Forest, logging: bool, share: float = 1.0) -> LossOutput:
    output: LossOutput = module._run(part, logging)
    with torch.autocast(module.device.type, enabled=False):
        total = output.total * (share / module.trainer.accumulate_grad_batches)
        module.trainer.strategy.backward(total, None)
    return output._replace(total=output.total.detach())


def _forget_gradients(module: Any, batch_idx: int) -> None:
    # Lightning would do so after the step's first parts have made theirs.
    if batch_idx % module.trainer.accumulate_grad_batches == 0:
        forget_gradients(module.trainer.strategy, module.optimizers())
        module.zeroed = True


def _spare_parts(module: Any, count: int) -> int:
    if module.optim.micro_batch_tokens is None:
        return 0
    # Sharded weights and gradients move together: every process runs as many parts as the one with most.
    most = module.trainer.strategy.reduce(torch.tensor(count, device=module.device), reduce_op="max")
    return int(most) - count


@contextmanager
def _one_head_gradient(policy: Any, parts: int) -> Iterator[HeadGradient]:
    """Inside the block, all parts of a batch collect the gradient of a policy's head in one buffer.

    The block covers the forward passes; set ``last`` before that of the last part.
    """
    gradient = HeadGradient()
    gradient.last = parts == 1
    if not hasattr(policy, "head_gradient"):
        yield gradient
        return
    policy.head_gradient = gradient
    try:
        yield gradient
    finally:
        policy.head_gradient = None
