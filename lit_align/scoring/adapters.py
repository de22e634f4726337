"""Adapters as scorers: which tensors are theirs, a frozen copy of one, and switching for a pass.

peft toggles ``requires_grad`` whenever it switches, and makes trainable whatever it switches to. Every switch
here puts back the active adapters and all flags, and none may surround a backward pass.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from lit_align.scoring.reference_cache import weights_digest


def has_adapters(model: nn.Module) -> bool:
    """Whether the model is wrapped by peft."""
    return hasattr(model, "peft_config") and hasattr(model, "disable_adapter")


def active_adapter(model: Any) -> str:
    """The adapter that is trained.

    Raises:
        ValueError: several are active at once.
    """
    names = list(model.active_adapters)
    if len(names) != 1:
        raise ValueError(f"the policy has {len(names)} active adapters ({', '.join(names)}); one is needed")
    return names[0]


def adapter_tensors(model: nn.Module, name: str) -> dict[str, Tensor]:
    """Parameters of one adapter, live, under names that do not contain the adapter's."""
    found: dict[str, Tensor] = {}
    parameters = dict(model.named_parameters())
    for prefix in _containers(model):
        start = f"{prefix}.{name}"
        for key, value in parameters.items():
            if key == start or key.startswith(start + "."):
                found[prefix + key[len(start) :]] = value
    return found


def adapter_names_of(model: nn.Module, name: str) -> frozenset[str]:
    """Names in the model's state dict of the parameters of one adapter."""
    mine = {id(t) for t in adapter_tensors(model, name).values()}
    return frozenset(key for key, value in model.named_parameters() if id(value) in mine)


def base_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The model's state dict without its adapters."""
    inside = tuple(prefix + "." for prefix in _containers(model))
    return {
        key: value for key, value in model.state_dict().items() if not (inside and key.startswith(inside))
    }


def is_fresh(model: Any) -> bool:
    """Whether the active adapter changes nothing yet: LoRA, with every second matrix zero."""
    config = model.peft_config[active_adapter(model)]
    if str(getattr(config.peft_type, "value", config.peft_type)) != "LORA":
        return False
    # These start from a decomposition of the weights and change the base to make up for it.
    if isinstance(config.init_lora_weights, str) and config.init_lora_weights != "gaussian":
        return False
    second = [
        value
        for key, value in adapter_tensors(model, active_adapter(model)).items()
        if ".lora_B" in key or ".lora_embedding_B" in key
    ]
    return bool(second) and not any(bool(value.detach().any()) for value in second)


def snapshot_adapter(model: Any, wanted: str = "reference") -> str:
    """Add a frozen copy of the active adapter's present weights to the model.

    Returns:
        The name it got: ``wanted``, with a number where that is taken.
    """
    source = active_adapter(model)
    name, count = wanted, 1
    while name in model.peft_config:
        count += 1
        name = f"{wanted}_{count}"
    add_adapter(model, name, model.peft_config[source])
    theirs = adapter_tensors(model, source)
    with torch.no_grad():
        for key, mine in adapter_tensors(model, name).items():
            mine.data = theirs[key].detach().clone()
    freeze_adapter(model, name)
    return name


def add_adapter(model: Any, name: str, config: Any) -> None:
    """Add an adapter that changes nothing yet, in the dtype of the active one, and leave that one active.

    Args:
        model: wrapped by peft.
        name: of the new adapter.
        config: of peft, which is copied.
    """
    config = copy.deepcopy(config)
    # Ways of initialising that decompose the weights would change the base, which is shared.
    if getattr(config, "init_lora_weights", True) not in (True, False, "gaussian"):
        config.init_lora_weights = True
    wide = any(t.dtype == torch.float32 for t in adapter_tensors(model, active_adapter(model)).values())
    with _flags_restored(model):
        model.add_adapter(name, config, autocast_adapter_dtype=wide)


def only_adapters_train(model: nn.Module) -> bool:
    """Whether every trainable weight belongs to an adapter, so that the base stays what it is."""
    inside = tuple(prefix + "." for prefix in _containers(model))
    return all(name.startswith(inside) for name, p in model.named_parameters() if p.requires_grad)


def model_digest(model: nn.Module, adapter: str | None = None) -> str:
    """A digest of what a model computes with one of its adapters, or with none."""
    tensors = base_tensors(model)
    described: dict[str, Any] = {}
    if adapter is not None:
        tensors |= {f"adapter:{key}": value for key, value in adapter_tensors(model, adapter).items()}
        described = adapter_fields(model.peft_config[adapter])  # type: ignore[index]
    return weights_digest(tensors, getattr(model, "config", None), described)


def adapter_fields(config: Any) -> dict[str, Any]:
    """What of an adapter's configuration matters beside its weights, in an order that is always the same."""
    inert = ("base_model_name_or_path", "inference_mode", "peft_version", "revision", "init_lora_weights")
    fields = {key: value for key, value in config.to_dict().items() if key not in inert}
    return {key: sorted(value) if isinstance(value, set) else value for key, value in fields.items()}


def freeze_adapter(model: nn.Module, name: str) -> None:
    """No gradient for the parameters of one adapter."""
    for value in adapter_tensors(model, name).values():
        value.requires_grad_(False)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode for every submodule inside the block, and each one's own mode afterwards."""
    training = [m for m in module.modules() if m.training]
    module.eval()
    try:
        yield
    finally:
        for m in training:
            m.training = True


@contextmanager
def adapter_off(model: Any) -> Iterator[None]:
    """The bare base inside the block."""
    with _flags_restored(model), model.disable_adapter():
        yield


@contextmanager
def adapter_on(model: Any, name: str) -> Iterator[None]:
    """Another adapter inside the block, frozen, and the active one afterwards."""
    before, label = list(model.active_adapters), model.active_adapter
    with _flags_restored(model):
        try:
            model.set_adapter(name, inference_mode=True)
            yield
        finally:
            model.base_model.set_adapter(before)
            model.active_adapter = label


@contextmanager
def adapter_lent(model: Any, name: str) -> Iterator[None]:
    """Another adapter inside the block, with every ``requires_grad`` as it is outside.

    For adapters that are trained together: a graph that is built in the block leads to this one.
    """
    before, label = list(model.active_adapters), model.active_adapter
    with _flags_restored(model):
        try:
            with _flags_restored(model):
                model.set_adapter(name, inference_mode=True)
            yield
        finally:
            model.base_model.set_adapter(before)
            model.active_adapter = label


def recomputing_with(model: Any) -> Callable[[], tuple[Any, Any]]:
    """``context_fn`` of a checkpoint: a block is recomputed with the adapter it was computed with.

    The backward pass runs after the switch has ended.
    """

    def contexts() -> tuple[Any, Any]:
        (then,) = model.active_adapters
        return nullcontext(), _again(model, then)

    return contexts


@contextmanager
def _again(model: Any, name: str) -> Iterator[None]:
    if list(model.active_adapters) == [name]:
        yield
        return
    with adapter_lent(model, name):
        yield


@contextmanager
def _flags_restored(model: nn.Module) -> Iterator[None]:
    flags = [(p, p.requires_grad) for p in model.parameters()]
    try:
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def _containers(model: nn.Module) -> list[str]:
    """Paths of the dictionaries that hold one entry per adapter."""
    if not has_adapters(model):
        return []
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    return [
        f"{path}.{attribute}"
        for path, module in model.named_modules()
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)
        for attribute in module.adapter_layer_names
    ]
