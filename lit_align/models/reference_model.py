"""A reference model that shares its first layers with the model it is made from."""

import copy
import re
from typing import Any

from torch import nn

from lit_align.models.sharding import layers


def create_reference_model(
    model: nn.Module, num_shared_layers: int | None = None, pattern: str | None = None
) -> nn.Module:
    """A frozen copy of a model; its first layers may be the model's own, which are then frozen in both.

    What is shared takes no memory and no optimiser state, and cannot move away from the reference. Shared is
    every parameter that the model lists up to the end of the last shared layer: the embeddings, and the
    layers. An output head that is tied to the embeddings is shared, and frozen, with them.

    Args:
        model: of transformers, without adapters; parameters that become shared are frozen in place.
        num_shared_layers: how many layers, from the first; ``None`` copies everything and freezes nothing of
            the model.
        pattern: name of a layer with its number as ``{layer}``, for a model whose layers are not found by
            themselves: ``transformer.h.{layer}``.

    Returns:
        The copy, in eval mode, without gradients.

    Raises:
        ValueError: the model has adapters, fewer layers, or no layer by that name.
    """
    if hasattr(model, "peft_config"):
        raise ValueError(
            "under adapters the whole base is shared already: switch the adapters off instead (AdapterOff)"
        )
    shared = [] if num_shared_layers is None else _first_layers(model, num_shared_layers, pattern)
    for parameter in shared:
        parameter.requires_grad_(False)
    # What is in the memo is not copied.
    reference = copy.deepcopy(model, {id(parameter): parameter for parameter in shared})
    reference.zero_grad(set_to_none=True)
    return reference.requires_grad_(False).eval()


def _first_layers(model: nn.Module, count: int, pattern: str | None) -> list[nn.Parameter]:
    names = _layer_names(model, pattern)
    if not 1 <= count <= len(names):
        raise ValueError(
            f"num_shared_layers is {count}; {type(model).__name__} has {len(names)} layers, and at least 1 "
            "is shared"
        )
    listed = list(model.named_parameters())
    last = max(i for i, (name, _) in enumerate(listed) if name.startswith(names[count - 1] + "."))
    return [parameter for _, parameter in listed[: last + 1]]


def _layer_names(model: Any, pattern: str | None) -> list[str]:
    paths = [name for name, _ in model.named_modules()]
    if pattern is None:
        inside = {id(layer) for layer in layers(model)}
        names = [name for name, module in model.named_modules() if id(module) in inside]
        if not names:
            raise ValueError(
                f"{type(model).__name__} does not tell its layers: name them with pattern, for example "
                "'transformer.h.{layer}'"
            )
        return names
    if "{layer}" not in pattern:
        raise ValueError(f"pattern {pattern!r} has no {{layer}} where the layer's number stands")
    form = re.compile(re.escape(pattern).replace(re.escape("{layer}"), r"\d+"))
    names = [path for path in paths if form.fullmatch(path)]
    if not names:
        raise ValueError(f"no module of {type(model).__name__} is called {pattern!r} with a number in it")
    return names
