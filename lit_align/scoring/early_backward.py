"""A loss whose gradients are made at once, so that its activations do not wait for another loss's.

Policy and critic each make a graph. Were both kept until one backward pass, the activations of two forward
passes would be in memory together.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed.tensor import DTensor

from lit_align.outputs import LossOutput
from lit_align.runtime.zero_state import is_partitioned


def early_backward(run: Callable[[], LossOutput], parameters: Sequence[Tensor]) -> LossOutput:
    """Run a loss, and its backward pass with it; the gradients arrive when the total's are asked for.

    Without gradients, and where gradients belong to somebody else (weights spread over processes) or are
    too small before they are scaled (float16), it is an ordinary call of ``run``.

    Args:
        run: makes the loss, and all of its graph.
        parameters: that the gradients are for; they require gradients.

    Returns:
        What ``run`` returns, with a total whose graph holds gradients instead of activations.
    """
    if not parameters or not torch.is_grad_enabled() or _needs_the_graph(parameters):
        return run()
    outputs: list[LossOutput] = []
    total = _Early.apply(run, outputs, *parameters)
    return outputs[0]._replace(total=total)


def _needs_the_graph(parameters: Sequence[Tensor]) -> bool:
    if any(isinstance(p, DTensor) or is_partitioned(p) for p in parameters):
        return True
    kind = parameters[0].device.type
    half = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16
    return half or any(p.dtype == torch.float16 for p in parameters)


class _Early(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, run: Callable[[], LossOutput], outputs: list[LossOutput], *parameters: Tensor
    ) -> Tensor:
        with torch.enable_grad():
            output = run()
        grads: Sequence[Tensor | None] = [None] * len(parameters)
        if output.total.requires_grad:
            # As where backward passes usually run; each operation keeps the dtype that it was given.
            with torch.autocast(output.total.device.type, enabled=False):
                grads = torch.autograd.grad(output.total, parameters, allow_unused=True)
        ctx.save_for_backward(*grads)
        total = output.total.detach()
        outputs.append(output._replace(total=total))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        # In place, and therefore once: autograd refuses a second backward pass, loudly.
        return None, None, *(None if g is None else g.mul_(grad.to(g.dtype)) for g in ctx.saved_tensors)
