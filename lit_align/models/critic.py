"""The weights of a critic: a trunk, and a value head on its states."""

import logging
from pathlib import Path
from typing import Any, Literal

from torch import nn

from lit_align.models.build import build_causal_lm, build_reward_model, build_trunk
from lit_align.models.config import ModelConfig
from lit_align.models.sources import locate, resolve
from lit_align.models.value_head import FILE as VALUE_HEAD_FILE
from lit_align.models.value_head import (
    ValueHead,
    ValueHeadConfig,
    build_value_head,
    has_value_head,
    load_value_head,
    put_weights,
)

logger = logging.getLogger(__name__)


def build_critic(
    model: Any, head: ValueHeadConfig | None = None, *, options: ModelConfig | None = None
) -> tuple[nn.Module, ValueHead]:
    """A trunk of its own and a value head.

    Where the head comes from: the ``value_head.safetensors`` of the directory (of the adapter, if there is
    one); else, for a reward model, its score head, so that values start as rewards; else a new one.

    Args:
        model: anything :meth:`ModelConfig.coerce` takes that leads to a language model, a reward model, or
            what a critic was saved as; or a module in memory, which is used as it is.
        head: how a new head starts; its dropout goes for every head.
        options: as for :func:`~lit_align.models.build.build_causal_lm`.

    Returns:
        The trunk (or the model around it, where there is an adapter made for that), and the head.
    """
    head = head or ValueHeadConfig()
    if isinstance(model, nn.Module):
        return _split(build_trunk(model, options=options), head)
    if options is not None:
        raise ValueError("options are for a module in memory; put them into the description instead")
    config = ModelConfig.coerce(model)
    trunk, found = _split(_whole(config), head)
    place = saved_beside(config)
    return trunk, found if place is None else load_value_head(trunk, place, head.dropout)


def build_actor_critic(
    policy: Any, head: ValueHeadConfig | None = None, *, options: ModelConfig | None = None
) -> tuple[nn.Module, ValueHead]:
    """A language model and a value head on its own states.

    Args:
        policy: as for :func:`~lit_align.models.build.build_causal_lm`.
        head: how a new head starts, where none lies beside the model; its dropout goes for every head.
        options: as for :func:`~lit_align.models.build.build_causal_lm`.
    """
    head = head or ValueHeadConfig()
    model = build_causal_lm(policy, options=options)
    place = None if isinstance(policy, nn.Module) else saved_beside(ModelConfig.coerce(policy))
    if place is not None:
        return model, load_value_head(model, place, head.dropout)
    return model, build_value_head(model, head)


def saved_beside(config: ModelConfig) -> Path | None:
    """The directory with the value head that goes with a model: the adapter's, or the model's own.

    Of a model on the Hub, the head is fetched into the library's cache.
    """
    if config.random_weights:
        return None
    for name, revision in ((config.adapter, None), (config.path, config.revision)):
        if name:
            place = Path(resolve(name))
            found = place if place.is_dir() else _fetched(name, revision)
            if found is not None and has_value_head(found):
                return found
    return None


def _fetched(name: str, revision: str | None) -> Path | None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(name, VALUE_HEAD_FILE, revision=revision)).parent
    except LocalEntryNotFoundError:
        logger.warning("whether %s has a value head cannot be seen without a network: a new one begins", name)
    except EntryNotFoundError:
        logger.info("%s has no value head on the Hub: a new one begins", name)
    return None


def _whole(config: ModelConfig) -> nn.Module:
    """The model that the weights of the description were made for, with its adapters."""
    kind = _kind(config)
    if kind == "classifier":
        return build_reward_model(config)
    return build_causal_lm(config) if kind == "language model" else build_trunk(config)


def _kind(config: ModelConfig) -> Literal["classifier", "language model", "trunk"]:
    if config.adapter is not None:
        from peft import PeftConfig

        task = str(PeftConfig.from_pretrained(resolve(config.adapter)).task_type).rpartition(".")[2]
        # An adapter's weights carry the names of the model around the trunk.
        kinds = {"SEQ_CLS": "classifier", "CAUSAL_LM": "language model"}
        return kinds.get(task, "trunk")  # type: ignore[return-value]
    if config.random_weights:
        return "trunk"
    from transformers import AutoConfig

    described = AutoConfig.from_pretrained(
        locate(config, needs_weights=False),
        revision=config.revision or "main",
        trust_remote_code=config.trust_remote_code,
    )
    classifies = any(name.endswith("SequenceClassification") for name in described.architectures or ())
    return "classifier" if classifies else "trunk"


def _split(model: Any, config: ValueHeadConfig) -> tuple[nn.Module, ValueHead]:
    """The trunk of a model, and a value head that begins as the model's score head, if it has one."""
    inner = model.get_base_model() if hasattr(model, "peft_config") else model
    head = build_value_head(model, config)
    score = getattr(inner, "score", None)
    if score is not None:
        # With adapters, the trained copy of the head.
        copies = getattr(score, "modules_to_save", None)
        layer = score if copies is None else copies[next(iter(model.active_adapters))]
        put_weights(head, layer.weight, layer.bias, f"the {type(inner).__name__}")
        score.requires_grad_(False)
    return (inner.base_model if model is inner else model), head
