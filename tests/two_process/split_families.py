"""One of two processes: architectures split, against the same one whole."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from lit_align.models.tensor_parallel import split

SMALL: dict[str, Any] = {
    "vocab_size": 8,
    "hidden_size": 16,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


class Scorer(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model


def build(kind: str, lora: bool, **options: Any) -> Scorer:
    torch.manual_seed(0)
    config = CONFIG_MAPPING[kind](**(SMALL | options))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float64, attn_implementation="eager")
    if lora:
        targets = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear", init_lora_weights=False)
        model = get_peft_model(model, targets).double()
    with torch.no_grad():
        # Norms begin as ones, and LoRA's small: their gradients are to be large, and all different.
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, dtype=parameter.dtype))
    return Scorer(model.eval())


def compare(kind: str, lora: bool, **options: Any) -> int:
    """Logits and all gradients; how many gradients there were."""
    whole, parts = build(kind, lora, **options), build(kind, lora, **options)
    split(parts, init_device_mesh("cpu", (2,), mesh_dim_names=("tensor_parallel",)))
    ids = torch.tensor([[1, 2, 3, 4, 5], [6, 7, 1, 3, 2]])
    expected, found = (one.model(input_ids=ids).logits for one in (whole, parts))
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9, msg=f"{kind}: logits")
    direction = torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for logits in (expected, found):
        (logits * direction).sum().backward()
    count = 0
    for (name, mine), theirs in zip(parts.named_parameters(), whole.parameters(), strict=True):
        assert isinstance(mine, DTensor), name
        assert (mine.grad is None) == (theirs.grad is None), f"{kind}: {name}"
        if theirs.grad is not None:
            grad: Any = mine.grad
            count += 1
            torch.testing.assert_close(
                grad.full_tensor(), theirs.grad, rtol=1e-6, atol=1e-9, msg=f"{kind}: {name}"
            )
    return count


def run(arguments: Sequence[str]) -> None:
    folder, *kinds = arguments
    rank = int(os.environ["LOCAL_RANK"])
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    counts = {kind: [compare(kind, lora) for lora in (False, True)] for kind in kinds}
    if rank == 0:
        Path(folder, "counts.json").write_text(json.dumps(counts))
    torch.distributed.destroy_process_group()
