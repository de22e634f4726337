"""Loading a base in 4 or 8 bits, through bitsandbytes as transformers wires it.

peft's ``prepare_model_for_kbit_training`` is left out on purpose: it casts every weight that is not
quantised, embeddings and output layer among them, to float32. Adapters freeze the base by themselves.
"""

from typing import Any

import torch
from torch import nn

from lit_align.models.config import DTYPES, ModelConfig, QuantizationConfig


def quantization_arguments(config: QuantizationConfig | None) -> dict[str, Any]:
    """Arguments of ``from_pretrained`` for a quantised base, none where none is asked for.

    Quantised weights are made on the device they will live on: the current default device, which
    Lightning sets to the process's own while it builds the model.
    """
    if config is None:
        return {}
    return {
        "quantization_config": bitsandbytes_config(config),
        "device_map": {"": str(torch.get_default_device())},
    }


def bitsandbytes_config(config: QuantizationConfig) -> Any:
    """The configuration of transformers for ours."""
    from transformers import BitsAndBytesConfig

    if config.kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, **config.extra)
    # Without a compute dtype bitsandbytes takes the input's, which is the model's own.
    compute = (
        {} if config.compute_dtype == "auto" else {"bnb_4bit_compute_dtype": DTYPES[config.compute_dtype]}
    )
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=config.double_quant,
        **compute,
        **config.extra,
    )


def keep_differentiable(model: nn.Module) -> None:
    """Stop 4-bit layers from repacking their weights on the CPU.

    On a processor with AVX512-BF16, bitsandbytes changes the layout of a 4-bit layer at its first forward in
    eval mode, for good, and the product with the new layout has no gradient: one validation or reference
    pass, and adapters in later steps would learn from wrong gradients without an error.
    """
    for module in model.modules():
        layer: Any = module
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False


def refuse_in_memory(config: ModelConfig) -> None:
    """Refuse options that only loading can follow, for a module that is in memory already."""
    if config.quantization is not None:
        raise ValueError(
            "a module in memory cannot be quantised: bitsandbytes quantises while it loads. Give the path of "
            "the model instead, or load it with a quantization_config yourself and pass that"
        )
    if config.dtype != "auto":
        raise ValueError(
            f"dtype {config.dtype} for a module in memory: convert it yourself (module.to({config.dtype})), "
            "so that nothing is cast behind your back"
        )
