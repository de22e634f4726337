"""The whole divergence under FSDP2, where one process has a document longer than the model's window.

Arguments: ``PROCESSES OUT``; each process saves what it finds.
"""

import os
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh

from lit_align import Forest
from lit_align.models.build import build_causal_lm
from lit_align.models.config import ModelConfig
from lit_align.models.sharding import shard
from lit_align.scoring.full_kl import full_kl
from lit_align.scoring.policy import Policy
from lit_align.scoring.references import FrozenCopy

ARCHITECTURE = {
    "model_type": "mistral",
    "vocab_size": 61,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "initializer_range": 0.4,
    "sliding_window": 8,
}
LENGTHS = [3, 12]


def run(arguments: list[str]) -> None:
    processes, out = int(arguments[0]), Path(arguments[1])
    torch.set_num_threads(1)
    policy = Policy(build_causal_lm(ModelConfig(architecture=ARCHITECTURE, seed=3)), layout="flat").eval()
    reference = FrozenCopy()
    reference.attach(policy)
    assert reference.frozen is not None
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in policy.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.05)
    ranks = list(range(2))
    if processes > 1:
        rank = int(os.environ["LOCAL_RANK"])
        # A process that waits for another fails soon.
        patience = timedelta(seconds=20)
        distributed.init_process_group("gloo", rank=rank, world_size=processes, timeout=patience)
        for scorer in (policy, reference.frozen):
            shard(scorer, init_device_mesh("cpu", (processes,)))
        ranks = [rank]
    for rank in ranks:
        batch = Forest.from_lists([[5, 6]], [[[7 + i for i in range(LENGTHS[rank])], [8, 2]]])
        assert (policy.flat_layout(batch) is None) == (rank == 1)
        torch.save(full_kl(policy, reference, batch), out.with_name(f"{out.name}.{rank}"))
    if processes > 1:
        distributed.destroy_process_group()
