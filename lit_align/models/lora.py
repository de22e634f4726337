"""LoRA adapters on a model: new ones, or an existing one to go on with."""

import inspect
from typing import Any

from torch import nn

from lit_align.models.config import LoraConfig, ModelConfig, nearest
from lit_align.models.seeding import seeded
from lit_align.models.skeleton import in_skeleton
from lit_align.models.sources import resolve


def add_adapters(model: nn.Module, config: ModelConfig, task: str) -> nn.Module:
    """Put adapters on a model as the description says; return it unchanged where it says nothing.

    Args:
        model: the base; its weights are frozen where adapters are added.
        config: the description.
        task: ``CAUSAL_LM``, or ``SEQ_CLS``, where the head is trained and saved whole beside the adapters.

    Raises:
        ValueError: the model has adapters already, or a target names no module.
    """
    if config.adapter is not None:
        return _continue(model, config.adapter)
    if config.lora is None:
        return model
    _refuse_second(model)
    from peft import get_peft_model

    with seeded(config.seed):
        return get_peft_model(
            model,
            peft_config(config.lora, task),
            autocast_adapter_dtype=config.lora.dtype == "float32",
        )


def peft_config(lora: LoraConfig, task: str) -> Any:
    """The configuration of peft for ours."""
    import peft

    known = list(inspect.signature(peft.LoraConfig).parameters)
    for name in lora.extra:
        if name not in known:
            hint = nearest(name, known)
            raise ValueError(f"lora.extra: peft.LoraConfig has no argument {name!r}{hint}")
    extra = lora.extra
    if in_skeleton() and extra.get("init_lora_weights", True) is not False:
        # Some ways to begin look at the base's weights, which process zero has.
        extra = {**extra, "init_lora_weights": True}
    return peft.LoraConfig(
        task_type=task,
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.targets if isinstance(lora.targets, str) else list(lora.targets),
        use_dora=lora.dora,
        use_rslora=lora.rslora,
        modules_to_save=list(lora.modules_to_save) if lora.modules_to_save else None,
        bias=lora.bias,
        **extra,
    )


def _continue(model: nn.Module, adapter: str) -> nn.Module:
    _refuse_second(model)
    from peft import PeftModel

    place = resolve(adapter)
    # A stored adapter is small and about to be trained: in float32, like a new one.
    return PeftModel.from_pretrained(model, place, is_trainable=True)


def _refuse_second(model: nn.Module) -> None:
    if hasattr(model, "peft_config"):
        names = ", ".join(model.peft_config)  # type: ignore[arg-type]
        raise ValueError(
            f"the model has adapters already ({names}); give the base model, or leave lora and adapter out"
        )
