"""One of several processes: a sharded model and the frozen copy that a callback makes of it.

Arguments: ``FOLDER DATA_PARALLEL TENSOR_PARALLEL``. Each writes how many of its numbers it holds.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from split_families import build
from torch.distributed.device_mesh import init_device_mesh

from lit_align.callbacks.whole_model import sharded_copy
from lit_align.models.sharding import shard
from lit_align.scoring.policy import Policy


def run(arguments: Sequence[str]) -> None:
    folder, *sizes = arguments
    rank, world_size = int(os.environ["LOCAL_RANK"]), int(os.environ["WORLD_SIZE"])
    torch.distributed.init_process_group("gloo", rank=rank, world_size=world_size)
    shape = (int(sizes[0]), int(sizes[1]))
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("data_parallel", "tensor_parallel"))
    whole, parts = (Policy(build("llama", lora=False).model) for _ in range(2))
    shard(parts, mesh)
    copy = sharded_copy(parts.model)
    ids = torch.tensor([[1, 2, 3, 4, 5]])
    with torch.no_grad():
        torch.testing.assert_close(copy(input_ids=ids).logits, whole.model(input_ids=ids).logits)
    assert not any(p.requires_grad for p in copy.parameters())
    for module in copy.modules():
        if hasattr(module, "reshard"):
            module.reshard()
    held = sum(p.to_local().numel() for p in copy.parameters())
    found = {"held": held, "all": sum(p.numel() for p in whole.parameters())}
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()
