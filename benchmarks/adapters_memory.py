"""Memory of PPO over one base, against supervised fine-tuning with LoRA on a batch of the same shape.

    python benchmarks/adapters_memory.py [--steps 2] [--rows 8] [--length 256]

Each line is a process of its own that loads a model (float32) and takes steps through Lightning's Trainer:

    sft             SFT with LoRA
    value head      PPO: policy adapter with a value head; reference: adapters off; reward: an adapter
    value adapter   PPO: the same with an adapter for the critic
    four models     PPO: policy with LoRA; reference, reward model and critic each a model of its own

A quarter of each row is prompt; SFT is given the rest, PPO writes it, one completion a prompt and one
optimiser step a rollout. "models" is the resident set when all weights stood and no step had been taken,
"peak" the largest of the process from there on, "growth" the difference. Ratios are to the line of sft.
"""

import argparse
import json
import logging
import os
import platform
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning as L
import torch
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader

from lit_align import PPO, SFT
from lit_align.batches import Forest
from lit_align.models.build import build_causal_lm, build_reward_model
from lit_align.models.config import LoraConfig, ModelConfig
from lit_align.models.export import save_pretrained_dir
from lit_align.models.tokenizers import load_tokenizer
from lit_align.rollouts.sampling import Sampling
from lit_align.scoring.references import FromPath

WORKLOADS = ("sft", "value head", "value adapter", "four models")
TOKENIZER = "lit-align/tiny"
ARCHITECTURE: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 8192,
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "max_position_embeddings": 2048,
}


def prepare(folder: Path) -> None:
    """A base, and a reward model on it as an adapter and as a whole model."""
    save_pretrained_dir(build_causal_lm(ARCHITECTURE), None, folder / "base")
    reward = build_reward_model(ModelConfig(str(folder / "base"), lora=LoraConfig(r=16)))
    save_pretrained_dir(reward, None, folder / "reward-adapter")
    # With the policy's tokenizer, so that it reads the policy's tokens as they are.
    save_pretrained_dir(reward, load_tokenizer(TOKENIZER), folder / "reward", merge=True)


def build(workload: str, folder: Path, length: int) -> Any:
    base = str(folder / "base")
    policy = ModelConfig(base, lora=LoraConfig(r=16))
    if workload == "sft":
        return SFT(policy, tokenizer=TOKENIZER, lr=1e-5)
    own = workload == "four models"
    new = length - length // 4
    critics: dict[str, Any] = {"value head": "shared", "value adapter": "adapter", "four models": base}
    return PPO(
        policy,
        tokenizer=TOKENIZER,
        reference=FromPath(base) if own else None,
        rewards={"model" if own else "adapter": str(folder / ("reward" if own else "reward-adapter"))},
        critic=critics[workload],
        # Of one length, whatever the random model would stop at.
        sampling=Sampling(max_new_tokens=new, min_new_tokens=new),
        num_epochs=1,
        num_minibatches=1,
        lr=1e-5,
    )


def batches(workload: str, rows: int, length: int, steps: int) -> list[Forest]:
    generator = torch.Generator().manual_seed(0)
    # Within the tokenizer's vocabulary, without its special tokens.
    ids = torch.randint(10, 500, (steps, rows, length), generator=generator).tolist()
    prompt = length // 4
    return [
        Forest.from_lists([row[:prompt] for row in batch], [[row[prompt:]] for row in batch])
        if workload == "sft"
        else Forest.from_lists([row[:prompt] for row in batch], [[] for _ in batch])
        for batch in ids
    ]


def run(workload: str, folder: Path, rows: int, length: int, steps: int) -> dict[str, float]:
    torch.set_num_threads(1)
    L.seed_everything(0, verbose=False)
    quiet: dict[str, Any] = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    trainer = L.Trainer(max_steps=steps, accelerator="cpu", log_every_n_steps=steps, **quiet)
    module = build(workload, folder, length)
    module.configure_model()
    # Weights from a file are not in memory before they are looked at.
    for parameter in module.parameters():
        parameter.sum()
    before = resident("VmRSS")
    # Forget the peak of building the models.
    Path("/proc/self/clear_refs").write_text("5")
    trainer.fit(module, DataLoader(batches(workload, rows, length, steps), batch_size=None))  # type: ignore[arg-type]
    assert trainer.global_step == steps
    # The kernel may take a page back between the look and the reset.
    return {"before": before, "peak": max(before, resident("VmHWM"))}


def resident(name: str) -> float:
    """A line of the kernel's account of this process, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1000 for line in lines if line.startswith(f"{name}:"))


def measure(workload: str, folder: Path, arguments: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, __file__, "--one", workload, "--folder", str(folder)]
    for name in ("steps", "rows", "length"):
        command += [f"--{name}", str(getattr(arguments, name))]
    # One pool for all threads, and large blocks given back: the resident set is what is held.
    env = {**os.environ, "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "1000000"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{workload} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def report(found: dict[str, dict[str, float]], title: str) -> None:
    table = Table(title=title, title_justify="left")
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
    names = ("lit-align", "torch", "lightning", "transformers", "peft")
    packages = ", ".join(f"{name} {version(name)}" for name in names)
    console.print(f"{packages}; Python {platform.python_version()}, {platform.machine()}", soft_wrap=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=2, help="optimiser steps")
    parser.add_argument("--rows", type=int, default=8, help="rows of a batch")
    parser.add_argument("--length", type=int, default=256, help="tokens of a row")
    parser.add_argument("--one", choices=WORKLOADS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    size = (arguments.rows, arguments.length, arguments.steps)
    if arguments.one:
        print(json.dumps(run(arguments.one, arguments.folder, *size)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        found = {}
        for name in WORKLOADS:
            found[name] = measure(name, Path(folder), arguments)
            print(f"{name}: {found[name]}", file=sys.stderr, flush=True)
    report(found, "MB, {} rows of {} tokens, {} steps".format(*size))
    return 0


if __name__ == "__main__":
    sys.exit(main())
