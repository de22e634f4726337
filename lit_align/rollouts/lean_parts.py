"""What a lean decoding step is made of: matrices, with one LoRA beside them or without, and norms."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, rms_norm, silu

#: From ``[R, D]`` to a new ``[R, E]``.
Product = Callable[[Tensor], Tensor]
#: From states ``[R, D]`` and inputs ``[R, E]`` to states; the old ones may be written over.
Addition = Callable[[Tensor, Tensor], Tensor]


class Norm:
    """``x / sqrt(mean(x²) + eps) * weight`` over the last dimension (arXiv 1910.07467, eq. 4).

    Args:
        weight: ``[D]``, or ``[heads, D]`` with one for each head.
        eps: of the norm.
    """

    def __init__(self, weight: Tensor, eps: float) -> None:
        size = weight.shape[-1]
        self.weight, self.eps, self.size = weight, eps, (size,)
        # The library's norm has a kernel of its own elsewhere, and rounds on the way in lower precision.
        self.plain = weight.is_cpu and weight.dtype == torch.float32
        if self.plain:
            self.scaled = weight.detach() * math.sqrt(size)
            self.floor = weight.new_tensor(math.sqrt(size * eps))

    def __call__(self, x: Tensor) -> Tensor:
        """Of ``x`` ``[..., D]``, as a new tensor."""
        if not self.plain:
            if self.weight.ndim == 1:
                return rms_norm(x, self.size, self.weight, self.eps)
            return rms_norm(x, self.size, None, self.eps) * self.weight
        # sqrt(sum x² + D eps), without its seven calls.
        length = torch.linalg.vector_norm(x, 2, -1, True)
        return (x * self.scaled).div_(torch.hypot(length, self.floor))


def product(module: Any) -> Product:
    """The product of a layer: of its matrix where it is one, with one LoRA beside it, or the layer's own."""
    if type(module) is not nn.Linear:
        return _adapted(module) or module
    weight, bias = module.weight, module.bias
    return lambda states: linear(states, weight, bias)


def joined(modules: Sequence[Any]) -> Product:
    """The products of several layers on the same input, side by side."""
    products = [product(module) for module in modules]
    return lambda states: torch.cat([one(states) for one in products], -1)


def gated(gate: Any, up: Any, activation: Any) -> Product:
    """A gated unit: ``activation(gate(x)) * up(x)``."""
    act, to_gate, to_up = _activation(activation), product(gate), product(up)
    return lambda states: act(to_gate(states)).mul_(to_up(states))


def addition(module: Any) -> Addition:
    """Adds a layer's product to the states."""
    # In lower precision the product is rounded before it is added, where the policy is trained.
    if type(module) is nn.Linear and module.bias is None and module.weight.dtype == torch.float32:
        weight = module.weight.t()
        return lambda states, x: states.addmm_(x, weight)
    own = product(module)
    return lambda states, x: states + own(x)


def _activation(module: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    if isinstance(module, nn.SiLU) or type(module).__name__ == "SiLUActivation":
        return lambda gate: silu(gate, inplace=True)
    return module


def _adapted(module: Any) -> Product | None:
    """A matrix with one LoRA beside it; ``None`` for anything else."""
    names = getattr(module, "active_adapters", None)
    if names is None or len(names) != 1 or not hasattr(module, "lora_A"):
        return None
    name = names[0]
    if (
        type(module.base_layer) is not nn.Linear
        or module.disable_adapters
        or module.merged
        or name not in module.lora_A
        or name in getattr(module, "lora_variant", {})
        or module.lora_A[name].weight.dtype != module.base_layer.weight.dtype
        or module.lora_B[name].bias is not None
    ):
        return None
    weight, bias = module.base_layer.weight, module.base_layer.bias
    down, up, scaling = module.lora_A[name].weight, module.lora_B[name].weight, module.scaling[name]
    return lambda states: linear(states, weight, bias).add_(linear(linear(states, down), up), alpha=scaling)
