"""Rollouts of a sharded policy, whose processes have unequal prompts; each process saves its completions.

Arguments: ``GENERATOR PROCESSES OUT``, the generator being ``native`` or ``transformers``.
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
from lit_align.models.value_head import ValueHeadConfig, build_value_head
from lit_align.rollouts.native import NativeGenerator
from lit_align.rollouts.sampling import Sampling
from lit_align.rollouts.transformers_generator import TransformersGenerator
from lit_align.scoring.critic import ActorCritic

ARCHITECTURE = {
    "model_type": "llama",
    "vocab_size": 61,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "initializer_range": 0.4,
    "eos_token_id": 2,
}
# Process zero has one prompt and short completions, process one many prompts; the third has nothing to do.
PROMPTS = [[[5, 6]], [[7], [8, 9, 10], [11, 12, 13, 14, 15, 16], [17] * 9, [18, 19]], []]
GENERATORS = {"native": NativeGenerator, "transformers": TransformersGenerator}


def run(arguments: list[str]) -> None:
    kind, processes, out = arguments[0], int(arguments[1]), Path(arguments[2])
    torch.set_num_threads(1)
    model = build_causal_lm(ModelConfig(architecture=ARCHITECTURE, seed=3))
    policy = ActorCritic(model, build_value_head(model, ValueHeadConfig(init="normal"))).train()
    ranks = range(processes)
    if processes > 1:
        # A process that waits for another fails soon.
        patience = timedelta(seconds=100)
        rank = int(os.environ["LOCAL_RANK"])
        distributed.init_process_group("gloo", rank=rank, world_size=processes, timeout=patience)
        shard(policy, init_device_mesh("cpu", (processes,)))
        ranks = range(distributed.get_rank(), distributed.get_rank() + 1)
    else:
        ranks = range(3)
    generator = GENERATORS[kind](2)
    found = {}
    for rank in ranks:
        for again in range(2):
            forest = generator.generate(
                policy,
                None,
                PROMPTS[rank],
                completions=2,
                sampling=Sampling(4 if rank == 0 else 15),
                seeds=[100 * again + i for i in range(2 * len(PROMPTS[rank]))],
                value_head=policy.value_head,
            )
            found[f"{rank}/{again}/ids"] = forest.completion_ids
            found |= {f"{rank}/{again}/{name}": column for name, column in forest.token_columns.items()}
    # Training goes on afterwards.
    batch = Forest.from_lists([[5, 6]], [[[7, 8, 2]]])
    scores = policy(batch)
    (scores.logps.sum() + scores.values.sum()).backward()
    torch.save(found, out.with_name(f"{out.name}.{ranks[0]}"))
    if processes > 1:
        distributed.destroy_process_group()
