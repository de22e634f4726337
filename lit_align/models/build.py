"""From a description to a model with weights."""

import logging
from collections.abc import Callable
from typing import Any

from torch import nn

from lit_align.models.config import DTYPES, ModelConfig
from lit_align.models.loading import quiet_loading
from lit_align.models.lora import add_adapters
from lit_align.models.quantization import keep_differentiable, quantization_arguments, refuse_in_memory
from lit_align.models.seeding import seeded
from lit_align.models.skeleton import in_skeleton
from lit_align.models.sources import check_loaded, locate, named

logger = logging.getLogger(__name__)

#: What the scoring head is called in the sequence classifiers of transformers.
HEAD_NAMES = ("score", "classifier")


def build_causal_lm(policy: Any, *, options: ModelConfig | None = None) -> nn.Module:
    """A language model from a name, a directory, a description, or a module in memory.

    It is causal, or an encoder and a decoder where its configuration says so (T5, BART).

    Args:
        policy: anything :meth:`ModelConfig.coerce` takes, or an ``nn.Module``, which is used as it is.
        options: for a module in memory only: a description whose ``lora``, ``adapter``, ``seed`` and
            ``gradient_checkpointing`` are applied to it; its path is ignored.

    Returns:
        The model, with adapters on it where they were asked for. ``auto`` keeps the checkpoint's
        dtype; nothing is cast in silence.

    Raises:
        ValueError: a directory without weights, a checkpoint that lacks weights of the model,
            quantisation of a module in memory.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    _check_options(policy, options)
    if has_encoder(policy):
        return _build(AutoModelForSeq2SeqLM, policy, options, "SEQ_2_SEQ_LM", heads=())
    return _build(AutoModelForCausalLM, policy, options, "CAUSAL_LM", heads=())


def has_encoder(policy: Any) -> bool:
    """Whether a model is an encoder-decoder, by its configuration alone.

    Args:
        policy: as for :func:`build_causal_lm`.
    """
    if isinstance(policy, nn.Module):
        return bool(getattr(getattr(policy, "config", None), "is_encoder_decoder", False))
    from transformers import AutoConfig

    config = ModelConfig.coerce(policy)
    if config.architecture is not None:
        return bool(AutoConfig.for_model(**config.architecture).is_encoder_decoder)
    place = locate(config, needs_weights=False)
    with named(place):
        described = AutoConfig.from_pretrained(
            place, revision=config.revision or "main", trust_remote_code=config.trust_remote_code
        )
    return bool(described.is_encoder_decoder)


def build_reward_model(
    policy: Any,
    *,
    pad_token_id: int | None = None,
    options: ModelConfig | None = None,
    fresh_head: bool = True,
) -> nn.Module:
    """A sequence classifier with one output.

    A checkpoint of a causal language model gets a fresh head, drawn from ``seed``. With LoRA the head is
    trained and saved whole beside the adapters.

    Args:
        policy: as for :func:`build_causal_lm`.
        pad_token_id: written into the model's configuration, where transformers needs it to find the
            last token of a row; by default what is there, or else the EOS.
        options: as for :func:`build_causal_lm`.
        fresh_head: ``False`` refuses a checkpoint without a head: to judge with one that nobody trained is
            never what was meant.
    """
    from transformers import AutoModelForSequenceClassification

    auto = AutoModelForSequenceClassification
    model = _build(auto, policy, options, "SEQ_CLS", heads=HEAD_NAMES, fresh_head=fresh_head)
    config: Any = model.config
    if config.num_labels != 1:
        raise ValueError(f"a reward model has one output, but this one has {config.num_labels} labels")
    if pad_token_id is None:
        pad_token_id = config.pad_token_id
    if pad_token_id is None:
        eos = config.eos_token_id
        pad_token_id = eos[0] if isinstance(eos, list) else eos
    config.pad_token_id = pad_token_id
    return model


def build_trunk(policy: Any, *, options: ModelConfig | None = None) -> nn.Module:
    """A model that ends in hidden states, for a critic: no head, and no weights that nobody uses.

    Args:
        policy: as for :func:`build_causal_lm`.
        options: as for :func:`build_causal_lm`.
    """
    from transformers import AutoModel

    return _build(AutoModel, policy, options, "FEATURE_EXTRACTION", heads=())


def enable_checkpointing(model: nn.Module, context_fn: Callable[[], Any] | None = None) -> None:
    """Recompute activations in the backward pass, without reentrance.

    The non-reentrant kind needs no inputs that require gradients, so adapters on a frozen embedding learn
    without a hook on it. ``config.use_cache`` stays: scoring passes ``use_cache=False`` by itself, and an
    exported model should generate with its cache.

    Args:
        model: of transformers, with or without adapters.
        context_fn: of ``torch.utils.checkpoint``: what surrounds a block's forward pass, and its second one.
    """
    options: dict[str, Any] = {"use_reentrant": False}
    if context_fn is not None:
        options["context_fn"] = context_fn
    inner: Any = model
    if not getattr(inner, "supports_gradient_checkpointing", hasattr(inner, "peft_config")):
        raise ValueError(f"{type(model).__name__} does not support gradient checkpointing")
    # transformers 5.2x renamed it, and warns about the old name.
    if hasattr(inner, "activation_checkpointing_enable"):
        inner.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
    else:
        inner.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)


def is_checkpointed(model: Any) -> bool:
    """Whether activations of a model of transformers are recomputed in the backward pass."""
    # transformers 5.2x renamed it, and warns about the old name.
    name = "is_activation_checkpointing"
    return bool(getattr(model, name if hasattr(model, name) else "is_gradient_checkpointing", False))


def _check_options(policy: Any, options: ModelConfig | None) -> None:
    if options is not None and not isinstance(policy, nn.Module):
        raise ValueError("options are for a module in memory; put them into the description instead")


def _build(
    auto: Any,
    policy: Any,
    options: ModelConfig | None,
    task: str,
    heads: tuple[str, ...],
    fresh_head: bool = True,
) -> nn.Module:
    if isinstance(policy, nn.Module):
        if options is None:
            return policy
        refuse_in_memory(options)
        model: nn.Module = policy
        config = options
    else:
        _check_options(policy, options)
        config = ModelConfig.coerce(policy)
        # An adapter brings its head along.
        may_lack = fresh_head or config.adapter is not None
        if config.quantization is not None and in_skeleton():
            raise ValueError(
                "quantised weights cannot be sharded: leave quantization out, or use the ddp strategy"
            )
        # Without weights there is nothing to load.
        if config.random_weights or in_skeleton():
            model = _random(auto, config, heads)
        else:
            model = _load(auto, config, heads, may_lack)
    model = add_adapters(model, config, task)
    if config.gradient_checkpointing:
        enable_checkpointing(model)
    return model


def _load(auto: Any, config: ModelConfig, heads: tuple[str, ...], fresh_head: bool) -> nn.Module:
    path = locate(config, needs_weights=True)
    arguments = _arguments(config)
    if heads:
        arguments["num_labels"] = 1
    with seeded(config.seed), quiet_loading(), named(str(path)):
        # A sequence classifier starts from the checkpoint of a language model: its head is drawn here.
        model, report = auto.from_pretrained(
            path,
            dtype="auto" if config.dtype == "auto" else DTYPES[config.dtype],
            output_loading_info=True,
            # Judged below, in words that name the weights.
            ignore_mismatched_sizes=True,
            **quantization_arguments(config.quantization),
            **arguments,
        )
    keep_differentiable(model)
    fresh = check_loaded(report, path, type(model).__name__, heads)
    if fresh and not fresh_head:
        raise ValueError(
            f"{path} has no reward head ({', '.join(fresh)}): it is no reward model. lit-align fit --config "
            "reward.yaml trains one"
        )
    if fresh:
        logger.warning(
            "%s has no reward head (%s): a fresh one, from seed %d", path, ", ".join(fresh), config.seed
        )
    return model


def _random(auto: Any, config: ModelConfig, heads: tuple[str, ...]) -> nn.Module:
    from transformers import AutoConfig

    arguments = _arguments(config)
    attention = arguments.pop("attn_implementation", None)
    if config.architecture is not None:
        described = AutoConfig.for_model(**config.architecture)
    else:
        described = AutoConfig.from_pretrained(locate(config, needs_weights=False), **arguments)
    if heads:
        described.num_labels = 1
    # Random weights have no name that they could be loaded by again.
    described._name_or_path = ""
    options: dict[str, Any] = {"trust_remote_code": config.trust_remote_code}
    if config.dtype != "auto":
        options["dtype"] = DTYPES[config.dtype]
    if attention is not None:
        options["attn_implementation"] = attention
    with seeded(config.seed):
        return auto.from_config(described, **options)


def _arguments(config: ModelConfig) -> dict[str, Any]:
    if config.trust_remote_code:
        logger.warning(
            "trust_remote_code: Python code from %s%s is run on this machine",
            config.path,
            f" at {config.revision}" if config.revision else " (no revision pinned)",
        )
    arguments: dict[str, Any] = {"trust_remote_code": config.trust_remote_code}
    if config.revision is not None:
        arguments["revision"] = config.revision
    if config.attn_implementation is not None:
        arguments["attn_implementation"] = config.attn_implementation
    return arguments
