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


def joined(modules: Sequence[Any], copied: bool) -> Product:
    """The products of several layers on the same input, side by side.

    Args:
        modules: the layers.
        copied: of a copy of their matrices, where :func:`turned_copy` makes one.
    """
    copy = turned_copy(modules) if copied else None
    if copy is not None:
        return copy
    products = [product(module) for module in modules]
    return lambda states: torch.cat([one(states) for one in products], -1)


def gated(gate: Any, up: Any, activation: Any, copied: bool) -> Product:
    """A gated unit: ``activation(gate(x)) * up(x)``.

    Args:
        gate: a layer.
        up: a layer.
        activation: of the gate.
        copied: see :func:`joined`.
    """
    act = _activation(activation)
    copy = turned_copy([gate, up]) if copied else None
    if copy is None:
        to_gate, to_up = product(gate), product(up)
        return lambda states: act(to_gate(states)).mul_(to_up(states))
    both = copy

    def unit(states: Tensor) -> Tensor:
        first, second = both(states).chunk(2, -1)
        return act(first).mul_(second)

    return unit


def addition(module: Any, copied: bool) -> Addition:
    """Adds a layer's product to the states.

    Args:
        module: the layer.
        copied: see :func:`joined`.
    """
    matrix = _turned([module]) if copied else None
    if matrix is None and _is_plain(module):
        matrix = module.weight.t(), module.bias
    # In lower precision the product is rounded before it is added, where the policy is trained.
    if matrix is not None and matrix[1] is None and matrix[0].dtype == torch.float32:
        weight = matrix[0]
        return lambda states, x: states.addmm_(x, weight)
    own = product(module)
    return lambda states, x: states + own(x)


def turned_copy(modules: Sequence[Any]) -> Product | None:
    """The product with a copy of matrices on the same input, side by side and turned; ``None`` for others.

    A product of a few rows with a matrix that lies the other way takes two thirds of the time, measured for 4
    to 128 rows. Adapters are added to the copy.
    """
    found = _turned(modules)
    if found is None:
        return None
    weight, bias = found
    if bias is None:
        return lambda states: states @ weight
    return lambda states: torch.addmm(bias, states, weight)


def _turned(modules: Sequence[Any]) -> tuple[Tensor, Tensor | None] | None:
    weights, biases = [], []
    for module in modules:
        base = module if _is_plain(module) else module.base_layer if _has_plain_lora(module) else None
        if base is None or base.weight.dtype != torch.float32 or not base.weight.is_cpu:
            return None
        weight = base.weight.detach()
        if base is not module:
            down, up, scaling = _lora(module)
            weight = torch.addmm(weight, up, down, alpha=scaling)
        weights.append(weight.t())
        biases.append(weight.new_zeros(len(weight)) if base.bias is None else base.bias.detach())
    bare = all((module if _is_plain(module) else module.base_layer).bias is None for module in modules)
    return torch.cat(weights, 1), None if bare else torch.cat(biases)


def _is_plain(module: Any) -> bool:
    return type(module) is nn.Linear


def _activation(module: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    if isinstance(module, nn.SiLU) or type(module).__name__ == "SiLUActivation":
        return lambda gate: silu(gate, inplace=True)
    return module


def _adapted(module: Any) -> Product | None:
    """A matrix with one LoRA beside it; ``None`` for anything else."""
    if not _has_plain_lora(module):
        return None
    weight, bias = module.base_layer.weight, module.base_layer.bias
    down, up, scaling = _lora(module)
    return lambda states: linear(states, weight, bias).add_(linear(linear(states, down), up), alpha=scaling)


def _lora(module: Any) -> tuple[Tensor, Tensor, float]:
    name = module.active_adapters[0]
    return module.lora_A[name].weight, module.lora_B[name].weight, module.scaling[name]


def _has_plain_lora(module: Any) -> bool:
    names = getattr(module, "active_adapters", None)
    if names is None or len(names) != 1 or not hasattr(module, "lora_A"):
        return False
    name = names[0]
    return (
        type(module.base_layer) is nn.Linear
        and not module.disable_adapters
        and not module.merged
        and name in module.lora_A
        and name not in getattr(module, "lora_variant", {})
        and module.lora_A[name].weight.dtype == module.base_layer.weight.dtype
        and module.lora_B[name].bias is None
    )
