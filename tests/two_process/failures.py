"""Process zero fails where the other does not; each process saves what it raised.

Arguments: ``handover|reward FOLDER``. Before that, they tell each other unequally many values.
"""

import os
import sys
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed

from lit_align import GRPO, Forest
from lit_align.algorithms import collection
from lit_align.models.build import build_causal_lm
from lit_align.models.config import ModelConfig
from lit_align.rewards.inputs import RewardError
from lit_align.rollouts.http_json import JsonClient
from lit_align.rollouts.weight_handover import CheckpointHandover
from lit_align.runtime.agreement import gathered
from lit_align.scoring.policy import Policy

# Tests are no package, and the doctest collector imports scripts from elsewhere.
sys.path.insert(0, str(Path(__file__).parent))
from rollouts import ARCHITECTURE


def fails_on_zero(completions: list[str]) -> list[float]:
    """A reward of which process zero cannot make anything."""
    if distributed.get_rank() == 0:
        raise RewardError("the grader is out of order")
    return [0.0 for _ in completions]


def handover(folder: Path) -> None:
    # Nobody listens there.
    client = JsonClient("http://127.0.0.1:9", timeout=1, attempts=1)
    policy = Policy(build_causal_lm(ModelConfig(architecture=ARCHITECTURE, seed=3)))
    CheckpointHandover(str(folder / "model"))(policy, 4, client)


def reward(folder: Path) -> None:
    module = GRPO("lit-align/tiny", rewards=fails_on_zero, completions=2)
    collection.reward(module, Forest.from_lists([[5, 6]], [[[7, 8], [9]]]))


def run(arguments: list[str]) -> None:
    kind, folder = arguments[0], Path(arguments[1])
    torch.set_num_threads(1)
    rank = int(os.environ["LOCAL_RANK"])
    distributed.init_process_group("gloo", rank=rank, world_size=2, timeout=timedelta(seconds=60))
    mine = torch.arange(3.0) if rank == 0 else torch.tensor([7.0])
    assert gathered(mine).tolist() == [0.0, 1.0, 2.0, 7.0]
    assert gathered(mine[rank:0]).tolist() == []
    try:
        {"handover": handover, "reward": reward}[kind](folder)
    except Exception as error:
        (folder / f"{kind}.{rank}").write_text(f"{type(error).__name__}: {error}")
    # Nobody is left behind in a collective.
    both = torch.ones(())
    distributed.all_reduce(both)
    assert both.item() == 2
    distributed.destroy_process_group()
