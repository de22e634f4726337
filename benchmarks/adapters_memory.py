"""Memory of RLHF over one base, against supervised fine-tuning with LoRA on the same batch.

    python benchmarks/adapters_memory.py [--steps 3] [--rows 8] [--length 256]

Each line is a process of its own. It builds a model with random weights (float32), then takes steps:

    sft             SFT with LoRA
    value head      policy adapter with a value head; reference: adapters off; reward: an adapter
    value adapter   the same with an adapter for the critic
    four models     policy with LoRA; reference, reward model and critic each a model of its own

A step of the last three scores the batch with reference, reward and critic, then trains critic and policy on
it with the losses of PPO. "peak" is the largest resident set of the process, "growth" how far that is above
the resident set when the models stood and no step had been taken. Ratios are to the line of sft.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from lit_align.batches import Forest
from lit_align.losses.ppo import clipped_squared_error, clipped_surrogate
from lit_align.losses.sft import nll
from lit_align.models.build import build_causal_lm, build_reward_model
from lit_align.models.config import LoraConfig, ModelConfig
from lit_align.models.critic import build_actor_critic, build_critic
from lit_align.models.export import save_pretrained_dir
from lit_align.outputs import LossOutput
from lit_align.scoring.critic import ActorCritic, Critic
from lit_align.scoring.policy import Policy, RewardScorer
from lit_align.scoring.references import AdapterOff, Reference
from lit_align.scoring.reward_adapter import RewardAdapter
from lit_align.scoring.value_adapter import ValueAdapter

WORKLOADS = ("sft", "value head", "value adapter", "four models")
ARCHITECTURE = {
    "model_type": "llama",
    "vocab_size": 8192,
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "max_position_embeddings": 2048,
}


def describe(lora: bool = True) -> ModelConfig:
    return ModelConfig(architecture=ARCHITECTURE, lora=LoraConfig(r=16) if lora else None)


def rows(count: int, length: int) -> Forest:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, ARCHITECTURE["vocab_size"], (count, length), generator=generator).tolist()
    quarter = length // 4
    return Forest.from_lists([row[:quarter] for row in ids], [[row[quarter:]] for row in ids])


def sft_step(batch: Forest) -> tuple[list[torch.nn.Module], Callable[[], Any]]:
    policy = Policy(build_causal_lm(describe())).train()

    def loss(scores: Any, part: Forest) -> LossOutput:
        return LossOutput((nll(scores.logps) * part.weights).sum(), part.weights.sum(), {})

    return [policy], lambda: policy(batch, loss=loss).total


def rlhf_step(workload: str, batch: Forest) -> tuple[list[torch.nn.Module], Callable[[], Any]]:
    critic: Any = None
    if workload == "value head":
        policy: Policy = ActorCritic(*build_actor_critic(describe())).train()
    else:
        policy = Policy(build_causal_lm(describe())).train()
    if workload == "four models":
        reference: Any = Policy(build_causal_lm(describe(lora=False))).eval().requires_grad_(False)
        reward: Any = RewardScorer(build_reward_model(describe(lora=False))).eval().requires_grad_(False)
        critic = Critic(*build_critic(describe())).train()
    else:
        reference, reward = AdapterOff(), reward_adapter(policy)
        reference.attach(policy)
    if workload == "value adapter":
        critic = ValueAdapter(policy).train()

    def step() -> torch.Tensor:
        rollout = experience(policy, critic, reference, reward, batch)
        value = critic(rollout, loss=value_loss).total if critic is not None else 0.0

        def loss(scores: Any, part: Forest) -> LossOutput:
            ratios = (scores.logps - part.token_columns["old_logps"]).exp()
            each = clipped_surrogate(ratios, part.token_columns["advantages"], clip_range=0.2)
            total = (each * part.weights).sum()
            if scores.values is not None:
                total = total + 0.1 * value_loss(scores.values, part).total
            return LossOutput(total, part.weights.sum(), {})

        return policy(rollout, loss=loss).total + 0.1 * value

    return [policy, *([critic] if critic is not None else [])], step


def value_loss(values: torch.Tensor, part: Forest) -> LossOutput:
    old, returns = part.token_columns["values"], part.token_columns["returns"]
    each = clipped_squared_error(values, old, returns, clip_range=0.2)
    return LossOutput((each * part.weights).sum(), part.weights.sum(), {})


@torch.no_grad()
def experience(policy: Policy, critic: Any, reference: Any, reward: Any, batch: Forest) -> Forest:
    scores = policy(batch)
    values = scores.values if critic is None else critic(batch)
    is_object = isinstance(reference, Reference)
    theirs = reference.score(batch) if is_object else reference(batch).logps
    rewards = reward(batch)[batch.sequence] - 0.1 * (scores.logps - theirs)
    columns = {"old_logps": scores.logps, "values": values, "returns": rewards, "advantages": rewards}
    for name, column in columns.items():
        batch = batch.with_token_column(name, column)
    return batch


def reward_adapter(policy: Policy) -> RewardAdapter:
    with tempfile.TemporaryDirectory() as folder:
        model = build_reward_model(describe())
        path = save_pretrained_dir(model, None, Path(folder) / "reward")
        del model
        adapter = RewardAdapter(str(path))
        adapter.attach(policy)
    return adapter


def run(workload: str, count: int, length: int, steps: int) -> dict[str, float]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    batch = rows(count, length)
    modules, step = sft_step(batch) if workload == "sft" else rlhf_step(workload, batch)
    trained = [p for module in modules for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)
    before = resident()
    reset_peak()
    for _ in range(steps):
        step().backward()
        optimizer.step()
        optimizer.zero_grad()
    return {"before": before, "peak": peak()}


def resident() -> float:
    return field("VmRSS")


def peak() -> float:
    return field("VmHWM")


def field(name: str) -> float:
    """A line of the kernel's account of this process, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1000 for line in lines if line.startswith(f"{name}:"))


def reset_peak() -> None:
    """Forget the peak of building the models."""
    Path("/proc/self/clear_refs").write_text("5")


def measure(workload: str, arguments: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, __file__, "--one", workload, "--steps", str(arguments.steps)]
    command += ["--rows", str(arguments.rows), "--length", str(arguments.length)]
    # One pool for all threads, and large blocks given back: the resident set is what is held.
    env = {**os.environ, "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "1000000"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=3, help="optimiser steps")
    parser.add_argument("--rows", type=int, default=8, help="rows of a batch")
    parser.add_argument("--length", type=int, default=256, help="tokens of a row")
    parser.add_argument("--one", choices=WORKLOADS, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    if arguments.one:
        print(json.dumps(run(arguments.one, arguments.rows, arguments.length, arguments.steps)))
        return 0
    found = {name: measure(name, arguments) for name in WORKLOADS}
    table = Table(
        title=f"MB, {arguments.rows} rows of {arguments.length} tokens, {arguments.steps} steps",
        title_justify="left",
    )
    for column in ("", "models", "peak", "growth", "peak / sft", "growth / sft"):
        table.add_column(column, justify="right" if column else "left")
    base = found["sft"]
    for name, cost in found.items():
        growth = cost["peak"] - cost["before"]
        table.add_row(
            name,
            f"{cost['before']:.0f}",
            f"{cost['peak']:.0f}",
            f"{growth:.0f}",
            f"{cost['peak'] / base['peak']:.3f}",
            f"{growth / (base['peak'] - base['before']):.3f}",
        )
    console = Console(width=100)
    console.print(table)
    names = ("lit-align", "torch", "transformers", "peft")
    packages = ", ".join(f"{name} {version(name)}" for name in names)
    console.print(f"{packages}; Python {platform.python_version()}, {platform.machine()}", soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
