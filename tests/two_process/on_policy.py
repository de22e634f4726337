"""A few steps of an algorithm that samples, on a given number of processes; rank 0 saves weights and metrics.

Arguments: ``ALGORITHM STRATEGY PROCESSES OUT``.
"""

import os
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.utils.data import DataLoader

from lit_align import A2C, GRPO, PPO, RLOO, ReinforcePP
from lit_align.algorithms.optim import OptimConfig
from lit_align.algorithms.shaping import KLPenalty, ScoreShaping
from lit_align.batches import Forest
from lit_align.rollouts.sampling import Sampling
from lit_align.runtime.zero_strategy import ZeroStrategy
from lit_align.scoring.references import FrozenCopy

STEPS = 5


def vowels(completions: list[str], **rest: Any) -> list[float]:
    """A reward that differs from completion to completion."""
    return [sum(letter in "aeiou" for letter in text) / (len(text) + 1) for text in completions]


def ranked(completions: list[str], **rest: Any) -> list[float]:
    """A judge that says something else in each process."""
    return [float(os.environ.get("LOCAL_RANK", 0))] * len(completions)


def build(algorithm: str) -> L.LightningModule:
    common: dict[str, Any] = {
        "policy": "lit-align/tiny",
        "rewards": vowels,
        "sampling": Sampling(12),
        "lr": 1e-3,
        # A step as large as its gradient: Adam's would be as large where the gradient is rounding.
        "optim": OptimConfig("torch.optim.SGD", schedule="constant"),
    }
    ppo = common | {
        "kl": KLPenalty(0.1, target=1.0, horizon=50.0),
        "scores": ScoreShaping("normalise", whiten_rewards=True),
    }
    if algorithm == "ppo":
        return PPO(**ppo, num_epochs=2)
    if algorithm == "ppo_critic":
        return PPO(**ppo, critic="lit-align/tiny", num_epochs=2)
    lora = {"path": "lit-align/tiny", "lora": {"r": 4}}
    if algorithm == "ppo_lora":
        return PPO(**ppo | {"policy": lora}, num_epochs=2)
    if algorithm == "ppo_full_kl":
        return PPO(**ppo | {"kl": KLPenalty(0.1, "full", 1.0, 50.0)}, num_epochs=2, bootstrap_truncated=True)
    if algorithm == "ppo_full_kl_lora":
        return PPO(**ppo | {"policy": lora, "kl": KLPenalty(0.1, "full")}, critic="adapter", num_epochs=2)
    if algorithm == "ppo_stopped":
        return PPO(**ppo | {"lr": 1e-2}, num_epochs=3, target_kl=1e-9)
    if algorithm == "a2c":
        return A2C(**common, whiten_advantages=True)
    if algorithm == "grpo":
        return GRPO(**common, completions=3, beta=0.1, num_epochs=2, advantages="gdpo", entropy_target=3.0)
    if algorithm == "grpo_top_entropy":
        return GRPO(**common, completions=3, top_entropy=0.3)
    if algorithm == "grpo_lora":
        # Lightning loads no sharded optimiser without a state.
        momentum = OptimConfig("torch.optim.SGD", schedule="constant", extra={"momentum": 0.5})
        options = common | {"policy": lora, "optim": momentum, "reference": FrozenCopy()}
        return GRPO(**options, completions=2, beta=0.1, num_epochs=2)
    if algorithm == "dynamic":
        return GRPO(**common, completions=3, num_epochs=2, dynamic_sampling=3)
    if algorithm == "ranked":
        return RLOO(**common | {"rewards": ranked}, completions=2)
    if algorithm == "rloo":
        return RLOO(**common, completions=3, num_epochs=2, normalise_advantages=True)
    return ReinforcePP(**common, num_epochs=2)


class Keep(L.Callback):
    def __init__(self, out: str) -> None:
        self.out = out
        self.steps: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Any, *rest: Any) -> None:
        self.steps.append({k: float(v) for k, v in trainer.callback_metrics.items()})

    def on_train_end(self, trainer: Any, module: Any) -> None:
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        weights = get_model_state_dict(module, options=options)
        if trainer.is_global_zero:
            mine = {k: v for k, v in weights.items() if not k.startswith(("reference.", "rewards."))}
            torch.save({"weights": mine, "steps": self.steps}, self.out)


def batches(shares: int, rank: int, repeat: int, rows: int) -> list[Forest]:
    """Eight prompts a rollout, shared out; each batch as often as a rollout has steps."""
    found = []
    for first in range(0, rows, 8):
        prompts = [[5 + (first + i) % 40, 6, 7 + i % 3] for i in range(8)]
        whole = Forest.from_lists(prompts, [[]] * 8, rows=range(first, first + 8))
        share = 8 // shares
        found += [whole.select(range(rank * share, (rank + 1) * share))] * repeat
    return found


def main(algorithm: str, strategy: str, processes: int, out: str) -> None:
    torch.set_num_threads(1)
    L.seed_everything(3, verbose=False)
    # Under tensor parallelism two read the same rows.
    shares = max(1, processes // 2) if strategy == "tensor" else processes
    spread: Any = strategy
    if strategy in ("fsdp", "tensor"):
        spread = ModelParallelStrategy(shares, processes // shares)
    if strategy == "zero2":
        spread = ZeroStrategy(2)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=processes,
        strategy=spread if processes > 1 else "auto",
        max_steps=STEPS,
        log_every_n_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=Path(out).parent,
        use_distributed_sampler=False,
        callbacks=[Keep(out)],
    )
    module: Any = build(algorithm)
    data = batches(shares, trainer.global_rank * shares // processes, module.steps_per_rollout, 8 * STEPS)
    trainer.fit(module, DataLoader(data, batch_size=None))  # type: ignore[arg-type]


def run(arguments: list[str]) -> None:
    main(arguments[0], arguments[1], int(arguments[2]), arguments[3])
