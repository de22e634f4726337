"""A server that forks one training run per request, so that a test pays for the imports once.

Reads specifications as lines of JSON, answers each with the exit status of the run (negative: the
signal that ended it). Run as a script; with a specification as its argument it runs that one alone.
"""

import hashlib
import json
import os
import signal
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, Dataset

from lit_align import DPO, SFT, RewardModel
from lit_align.algorithms.optim import OptimConfig
from lit_align.callbacks import ExactResume, NanGuard, Preemption
from lit_align.datamodules import PreferenceDataModule, PromptDataModule, SupervisedDataModule
from lit_align.runtime.checkpoint_io import AtomicCheckpointIO
from lit_align.scoring.references import EMA, Cached

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
    references = {
        "dpo": None,
        "dpo_ema": EMA(alpha=0.5, interval=2),
        "dpo_cached": Cached(path=str(out / "reference")),
    }
    return DPO(dict(POLICY), reference=references[name], loss={"sigmoid": 1.0, "sft": 0.5}, **common)


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

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        self.count += 1
        if self.kill_at is not None and self.count > self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.count in self.signals and trainer.global_rank == 0:
            os.kill(os.getpid(), self.signals[self.count])
        if self.count == self.touch_at:
            (self.path.parent / "SAVE").touch()
        seen = list(batch.rows) if hasattr(batch, "rows") else [int(v) for v in batch[:, 0].tolist()]
        with self.path.open("a") as file:
            file.write(json.dumps([trainer.current_epoch, batch_idx, seen, trainer.global_step]) + "\n")

    def on_validation_batch_start(self, *_: Any) -> None:
        torch.rand(7)


class Poison(L.Callback):
    """Put a NaN into the loss, a gradient or a weight at one micro-batch."""

    def __init__(self, what: str, at: int) -> None:
        self.what, self.at, self.count = what, at, 0

    def on_train_batch_start(self, trainer: Any, module: Any, *_: Any) -> None:
        self.count += 1
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
        found.update(name.encode())
        found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def run(spec: dict[str, Any]) -> None:
    torch.set_num_threads(1)
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
    if trainer.is_global_zero:
        result = {
            "digest": digest(module),
            "global_step": trainer.global_step,
            "epoch": trainer.current_epoch,
        }
        (out / "result.json").write_text(json.dumps(result))


def serve() -> None:
    # Imported before the fork, so that no run pays for it.
    import peft
    import transformers.models.llama.modeling_llama  # noqa: F401

    assert peft
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                spec = json.loads(line)
                Path(spec["out"]).mkdir(parents=True, exist_ok=True)
                log = os.open(Path(spec["out"]) / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                os.dup2(log, 1)
                os.dup2(log, 2)
                run(spec)
                code = 0
            except SystemExit as stop:
                code = int(stop.code or 0)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    # A specification as argument is run here, by as many processes as the trainer starts.
    run(json.loads(sys.argv[1])) if len(sys.argv) > 1 else serve()
