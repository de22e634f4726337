"""An adapter from disk onto a base that others share."""

import logging
from pathlib import Path
from typing import Any

from torch import Tensor

from lit_align.models.sources import resolve
from lit_align.scoring.adapters import adapter_names_of, add_adapter, freeze_adapter

logger = logging.getLogger(__name__)

_TENSORS = "adapter_model.safetensors"


def load_adapter(model: Any, name: str, path: str, *, trainable: bool) -> dict[str, Tensor]:
    """Add a stored adapter to a model, and leave the active one active.

    Only the low-rank weights are added: an adapter of a classifier fits onto the language model with the same
    trunk. What it carries beside them, a score head, is handed back.

    Args:
        model: wrapped by peft.
        name: that the adapter gets.
        path: directory with ``adapter_config.json`` and ``adapter_model.safetensors``.
        trainable: whether it goes on training.

    Returns:
        Tensors of the file that belong to no adapter layer, by their names in it.

    Raises:
        ValueError: the name is taken, the adapter changes the base, or its weights do not fit the model.
    """
    from peft import PeftConfig, set_peft_model_state_dict
    from safetensors.torch import load_file

    if name in model.peft_config:
        raise ValueError(f"the policy has an adapter {name!r} already; give the one in {path} another name")
    place = Path(resolve(path))
    if not (place / _TENSORS).is_file():
        raise ValueError(f"{place} holds no adapter: there is no {_TENSORS} in it")
    config = PeftConfig.from_pretrained(str(place))
    _check(config, model, place)
    stored = load_file(place / _TENSORS)
    whole = tuple(config.modules_to_save or ())
    others = {key: value for key, value in stored.items() if _owner(key) in whole}
    config.modules_to_save = None
    config.task_type = next(iter(model.peft_config.values())).task_type
    add_adapter(model, name, config)
    mine = {key: value for key, value in stored.items() if key not in others}
    result = set_peft_model_state_dict(model, mine, adapter_name=name)
    lost = sorted(adapter_names_of(model, name) & set(result.missing_keys))
    spare = sorted(result.unexpected_keys)
    if lost or spare:
        raise ValueError(
            f"the adapter in {place} does not fit the policy's model: {len(lost)} weights are missing, "
            f"{len(spare)} have no place ({', '.join((lost + spare)[:3])}). Was it trained on another base?"
        )
    if not trainable:
        freeze_adapter(model, name)
    return others


def _check(config: Any, model: Any, place: Path) -> None:
    if str(getattr(config.peft_type, "value", config.peft_type)) != "LORA":
        raise ValueError(
            f"{place} holds a {config.peft_type} adapter; only LoRA can share a base with others"
        )
    start = config.init_lora_weights
    if isinstance(start, str) and start not in ("gaussian", "orthogonal"):
        raise ValueError(
            f"the adapter in {place} began with init_lora_weights {start!r}, which changes the base; "
            "others could not share it. Export it merged, as a model of its own"
        )
    if config.bias != "none":
        raise ValueError(
            f"the adapter in {place} trained biases of the base (bias: {config.bias}); others could not "
            "share it"
        )
    theirs, ours = config.base_model_name_or_path, model.get_base_model().config._name_or_path
    # By the last part of the name: the same model may lie in another folder, or come from the Hub.
    if theirs and ours and Path(theirs).name != Path(ours).name:
        logger.warning(
            "the adapter in %s was trained on %s, and the policy stands on %s", place, theirs, ours
        )


def _owner(key: str) -> str:
    return key.split(".")[-2]
