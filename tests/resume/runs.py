"""A server that forks one training run per request, so that a test pays for the imports once.

Reads specifications as lines of JSON, answers each with the exit status of the run (negative: the
signal that ended it). A run of several processes (``trainer: {devices: 2}``) is that many forks.
"""

import hashlib
import json
import multiprocessing
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, Dataset

from lit_align import DPO, SFT, RewardModel
from lit_align.algorithms.a2c import A2C
from lit_align.algorithms.grpo import GRPO
from lit_align.algorithms.optim import OptimConfig
from lit_align.algorithms.ppo import PPO
from lit_align.algorithms.reinforce_pp import ReinforcePP
from lit_align.algorithms.rloo import RLOO
from lit_align.algorithms.shaping import KLPenalty, ScoreShaping
from lit_align.callbacks import ExactResume, NanGuard, Preemption
from lit_align.datamodules import PreferenceDataModule, PromptDataModule, SupervisedDataModule
from lit_align.rollouts.sampling import Sampling
from lit_align.runtime import sharded_strategy as _registers_fsdp2  # noqa: F401
from lit_align.runtime.checkpoint_io import AtomicCheckpointIO
from lit_align.scoring.references import EMA, Cached

# Tests are no package, and the doctest collector imports scripts from elsewhere.
sys.path.insert(0, str(Path(__file__).parents[1] / "two_process"))
from ranks import fork_ranks

POLICY: dict[str, Any] = {
    "architecture": {
        "model_type": "llama",
        "vocab_size": 1024,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 128,
        "attention_dropout": 0.2,
    },
    "seed": 1,
}
LORA = {"lora": {"r": 4, "dropout": 0.2, "extra": {"init_lora_weights": False}}}
WORDS = ["the", "bread", "is", "warm", "please", "come", "again", "door", "rain", "quiet"]


def module_of(name: str, out: Path) -> L.LightningModule:
    common: dict[str, Any] = {
        "tokenizer": "lit-align/tiny",
        "lr": 1e-2,
        "optim": OptimConfig(schedule="cosine", warmup=0.2),
    }
    if name == "foreign":
        return Foreign()
    if name == "prompts":
        return Repeated()
    if name == "sft":
        return SFT(dict(POLICY), neftune_alpha=5.0, **common)
    if name == "sft_lora":
        return SFT(POLICY | LORA, **common)
    if name == "reward":
        return RewardModel(dict(POLICY), **common)
    if name == "dpo_lora":
        return DPO(POLICY | LORA, **common)
    if name in ON_POLICY:
        return on_policy(name, common)
    references = {
        "dpo": None,
        "dpo_ema": EMA(alpha=0.5, interval=2),
        "dpo_cached": Cached(path=str(out / "reference")),
    }
    return DPO(dict(POLICY), reference=references[name], loss={"sigmoid": 1.0, "sft": 0.5}, **common)


#: Two passes of two minibatches over each rollout, so that most checkpoints are in the middle of one.
ON_POLICY: dict[str, Any] = {
    "ppo": lambda **o: PPO(kl=KLPenalty(0.1, target=0.5, horizon=20), scores=SCORES, **o),
    "ppo_critic": lambda **o: PPO(critic=dict(POLICY, seed=3), reference=EMA(0.5, interval=3), **o),
    "grpo": lambda **o: GRPO(completions=3, beta=0.05, **o),
    "grpo_replay": lambda **o: GRPO(completions=3, replay=4, dynamic_sampling=2, **o),
    "grpo_lora": lambda **o: GRPO(completions=3, beta=0.05, **o),
    "rloo": lambda **o: RLOO(completions=3, **o),
    "reinforce_pp": lambda **o: ReinforcePP(completions=2, **o),
    "a2c": lambda **o: A2C(scores=SCORES, **o),
}
SCORES = ScoreShaping(scaling="normalise", missing_eos_penalty=0.1)


def on_policy(name: str, common: dict[str, Any]) -> L.LightningModule:
    passes = {} if name == "a2c" else {"num_epochs": 2, "num_minibatches": 2}
    policy = POLICY | LORA if name.endswith("lora") else dict(POLICY)
    sampling = Sampling(max_new_tokens=6)
    return ON_POLICY[name](policy=policy, rewards=vowels, sampling=sampling, **passes, **common)


#: What every completion is worth from now on, where a test wants that.
worth: list[float] = []


def vowels(completions: list[str], **_: Any) -> list[float]:
    """The share of vowels; of nothing, none."""
    if worth:
        return worth * len(completions)
    return [sum(c in "aeiou" for c in text) / max(1, len(text)) for text in completions]


def text(i: int) -> str:
    generator = torch.Generator().manual_seed(i)
    count = int(torch.randint(1, 9, (1,), generator=generator))
    return " ".join(WORDS[j] for j in torch.randint(0, 10, (count,), generator=generator).tolist())


def rows(count: int, pairs: bool, start: int = 0) -> list[dict[str, str]]:
    found = []
    for i in range(start, start + count):
        row = {"prompt": text(3 * i)}
        row |= {"chosen": text(3 * i + 1), "rejected": text(3 * i + 2) + " no"} if pairs else {}
        found.append(row if pairs else row | {"completion": text(3 * i + 1)})
    return found


def data_of(name: str, options: dict[str, Any]) -> L.LightningDataModule | None:
    if name == "foreign":
        return None
    if name in ON_POLICY:
        prompts = [{"prompt": text(i)} for i in range(options.pop("count", 6))]
        return PromptDataModule(train=prompts, **{"batch_size": 2, "cache": False, **options})
    pairs = name not in ("sft", "sft_lora", "prompts")
    kind = PreferenceDataModule if pairs else SupervisedDataModule
    options = {"batch_size": 2, "cache": False, **options}
    start = options.pop("start", 0)
    if name == "prompts":
        kind, options["tokenizer"] = PromptDataModule, "lit-align/tiny"
    return kind(train=rows(options.pop("count", 13), pairs, start), val=rows(4, pairs, 500), **options)


class Noisy(Dataset):
    """A dataset that draws from every global generator."""

    def __len__(self) -> int:
        return 13

    def __getitem__(self, i: int) -> torch.Tensor:
        import random

        import numpy as np

        return torch.full((4,), float(i)) + torch.rand(4) + random.random() + np.random.rand()


class Foreign(L.LightningModule):
    """A module that knows nothing of this package."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.3), torch.nn.Linear(8, 1))

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return (self.net(batch) + torch.rand(1)).square().mean()

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        total = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=total)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


class Repeated(Foreign):
    """Takes three steps on each batch of prompts, each other than the one before."""

    steps_per_rollout = 3

    def __init__(self) -> None:
        # The same weights in every process that begins anew.
        torch.manual_seed(1)
        super().__init__()

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        features = torch.stack([batch.prompt_ids[:4].float() / 1000, torch.rand(4)])
        return self.net(features).square().mean()


class Watch(L.Callback):
    """Note each batch; at one, kill the process or send it a signal."""

    def __init__(self, path: Path, spec: dict[str, Any]) -> None:
        self.path, self.kill_at, self.count = path, spec.get("kill_at"), 0
        self.signals = {int(at): getattr(signal, name) for at, name in spec.get("signals", {}).items()}
        self.touch_at = spec.get("touch_at")
        self.kill_worker_at = spec.get("kill_worker_at")

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        self.count += 1
        if self.kill_at is not None and self.count > self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.count in self.signals and trainer.global_rank == 0:
            os.kill(os.getpid(), self.signals[self.count])
        if self.count == self.touch_at:
            (self.path.parent / "SAVE").touch()
        if self.count == self.kill_worker_at:
            worker = multiprocessing.active_children()[0]
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGKILL)
        seen = list(batch.rows) if hasattr(batch, "rows") else [int(v) for v in batch[:, 0].tolist()]
        with self.path.open("a") as file:
            file.write(json.dumps([trainer.current_epoch, batch_idx, seen, trainer.global_step]) + "\n")

    def on_validation_batch_start(self, *_: Any) -> None:
        torch.rand(7)


class Poison(L.Callback):
    """Put a NaN into the loss, the states, a gradient, a weight or a reward at one micro-batch."""

    def __init__(self, what: str, at: int) -> None:
        self.what, self.at, self.count = what, at, 0

    def on_train_batch_start(self, trainer: Any, module: Any, *_: Any) -> None:
        self.count += 1
        if self.what == "reward" and self.count == self.at:
            worth.append(float("inf"))
        if self.what == "states" and self.count == self.at:
            embeddings = module.policy.model.get_input_embeddings()
            embeddings.register_forward_hook(lambda _, inputs, states: states * torch.nan)
        if self.what == "loss" and self.count == self.at:
            step = module.training_step
            module.training_step = lambda *a: (module.__dict__.pop("training_step"), step(*a) * torch.nan)[1]

    def on_after_backward(self, trainer: Any, module: Any) -> None:
        if self.what == "gradient" and self.count == self.at:
            next(p for p in module.parameters() if p.grad is not None).grad.view(-1)[0] = torch.inf

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        if self.what == "weights" and self.count == self.at:
            next(p for p in module.parameters() if p.requires_grad).data.view(-1)[-1] = torch.nan


class Disturb(L.Callback):
    """Draw from the global generator where nobody expects it."""

    def on_train_batch_end(self, *_: Any) -> None:
        torch.rand(3)


def digest(module: L.LightningModule) -> str:
    found = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        if isinstance(value, DTensor):
            value = value.full_tensor()
        found.update(name.encode())
        found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def run(spec: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    os.environ |= spec.get("env", {})
    warnings.filterwarnings("ignore")
    out = Path(spec["out"])
    out.mkdir(parents=True, exist_ok=True)
    if spec.get("kill_after"):
        # Its default is death on the spot, as of SIGKILL, whatever is being done.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, spec["kill_after"])
    module = module_of(spec["algorithm"], out)
    resume = ExactResume(**spec.get("resume", {"seed": 5}))
    saver: dict[str, Any] = {"every_n_train_steps": 3, "save_top_k": -1, "filename": "{step}"}
    options: dict[str, Any] = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    options |= {"enable_model_summary": False, "num_sanity_val_steps": 0, **spec.get("trainer", {})}
    trainer = L.Trainer(
        default_root_dir=out,
        plugins=[AtomicCheckpointIO()],
        callbacks=[
            resume,
            *([Disturb()] if spec.get("disturb") else []),
            Watch(out / "batches.jsonl", spec),
            *([Poison(**spec["poison"])] if "poison" in spec else []),
            Preemption(save_file=out / "SAVE"),
            NanGuard(),
            ModelCheckpoint(out / "checkpoints", **(saver | spec.get("saver", {}))),
        ],
        **options,
    )
    data = data_of(spec["algorithm"], spec.get("data", {}))
    loader = None
    if data is None:
        loader = DataLoader(Noisy(), **({"batch_size": 2, "shuffle": True} | spec.get("data", {})))
    trainer.fit(module, loader, datamodule=data, ckpt_path=spec.get("ckpt"), weights_only=True)
    # All processes gather what is sharded.
    weights = digest(module)
    if trainer.is_global_zero:
        result = {
            "digest": weights,
            "global_step": trainer.global_step,
            "epoch": trainer.current_epoch,
        }
        (out / "result.json").write_text(json.dumps(result))


def processes_of(spec: dict[str, Any]) -> int:
    return int(spec.get("trainer", {}).get("devices", 1))


def serve() -> None:
    # Imported before the fork, so that no run pays for it.
    import peft
    import transformers.models.llama.modeling_llama  # noqa: F401

    assert peft
    for line in sys.stdin:
        spec = json.loads(line)
        out = Path(spec["out"])
        out.mkdir(parents=True, exist_ok=True)
        statuses = fork_ranks(lambda spec=spec: run(spec), processes_of(spec), out / "log.txt")  # type: ignore[misc]
        # Process zero's, unless it was ended because of another.
        first = next((code for code in statuses if code not in (0, -signal.SIGKILL)), statuses[0])
        print(statuses[0] if spec.get("kill_at") else first, flush=True)


if __name__ == "__main__":
    serve()
