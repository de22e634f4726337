"""A short run with callbacks, of a foreign module or one of ours; rank 0 writes what they found.

Arguments: ``STRATEGY PROCESSES OUT MODULE [CHECKPOINT]``, with ``ddp``, ``fsdp2`` or ``zero2``, and
``stranger``, ``stranger_lora``, ``dpo_lora``, ``grpo_lora`` or ``ppo``; ``..._bare`` runs without what only
looks on. With a checkpoint of the same the run goes on to step 6.
"""

import json
from pathlib import Path
from typing import Any

import lightning as L
import on_policy
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM

from lit_align import DPO
from lit_align.callbacks import (
    ExportHF,
    GenerationSamples,
    KLTracker,
    MergeAdapters,
    MergeModels,
    RichProgress,
    Sentinel,
    SyncReference,
    Throughput,
    WeightAverage,
    WinRate,
)
from lit_align.datamodules import PreferenceDataModule
from lit_align.models.sharding import layers
from lit_align.models.tokenizers import load_tokenizer
from lit_align.runtime.zero_strategy import ZeroStrategy
from lit_align.scoring.adapters import snapshot_adapter
from lit_align.scoring.references import FrozenCopy

PROMPTS = ["Hello", "Where is my order?", "Yes", "My lamp", "No"]
GIVEN = [{"prompt": prompt, "completion": " and so on"} for prompt in PROMPTS]


class Stranger(L.LightningModule):
    def __init__(self, tokenizer: Any, lora: bool) -> None:
        super().__init__()
        self.tokenizer, self.lora = tokenizer, lora
        self.net: Any = None

    def configure_model(self) -> None:
        if self.net is not None:
            return
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(self.tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            eos_token_id=self.tokenizer.eos_token_id,
            initializer_range=0.3,
        )
        self.net = LlamaForCausalLM(config).train()
        if self.lora:
            import peft

            self.net = peft.get_peft_model(self.net, peft.LoraConfig(r=4, target_modules="all-linear"))
            snapshot_adapter(self.net)
        if self.device_mesh is not None:
            from torch.distributed.fsdp import fully_shard

            for layer in layers(self.net):
                fully_shard(layer, mesh=self.device_mesh["data_parallel"])
            fully_shard(self.net, mesh=self.device_mesh["data_parallel"])

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.net(**batch, labels=batch["input_ids"]).loss

    def validation_step(self, batch: Any, batch_idx: int) -> None: ...

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.5)


def stranger(tokenizer: Any, processes: int, rank: int, lora: bool) -> tuple[Any, ...]:
    """Someone's module and its loaders; two processes with two rows each see what one sees with four."""
    ids = torch.randint(5, 200, (12, 7), generator=torch.Generator().manual_seed(0))
    rows = [{"input_ids": row} for row in ids[rank::processes]]
    size = 4 // processes
    loaders: Any = DataLoader(rows, size), DataLoader(rows, size)  # type: ignore[arg-type]
    return Stranger(tokenizer, lora), *loaders


def ours(processes: int) -> tuple[Any, ...]:
    """DPO with adapters, and the shipped pairs."""
    policy = {"path": "lit-align/tiny", "lora": {"r": 4}, "seed": 0}
    # Adam divides by the size of gradients, which are 0 but for rounding in some weights. Without momentum
    # there is no state, and Lightning's loading of sharded optimisers expects some.
    optim = {"name": "torch.optim.SGD", "extra": {"momentum": 0.5}}
    module = DPO(policy, reference=FrozenCopy(), lr=1.0, optim=optim)
    pairs = "lit-align/manners-pairs"
    data = PreferenceDataModule(train=pairs, val=pairs, batch_size=4 // processes, num_workers=0)
    return module, data


def sampling(kind: str, processes: int, rank: int, seen: int) -> tuple[Any, ...]:
    """GRPO with adapters, or PPO, and prompts of their own, after those seen before a run goes on."""
    module: Any = on_policy.build(kind)
    rows = on_policy.batches(processes, rank, module.steps_per_rollout, 8 * on_policy.STEPS)
    held_out = on_policy.batches(processes, rank, 1, 16)
    loaders: Any = [DataLoader(part, batch_size=None) for part in (rows[seen:], held_out)]  # type: ignore[arg-type]
    return module, *loaders


def longer(prompts: Any, firsts: Any, seconds: Any) -> list[float]:
    """The share of the first one in the length of both."""
    sides = zip(firsts, seconds, strict=True)
    return [len(first) / max(1, len(first) + len(second)) for first, second in sides]


def callbacks(kind: str, folder: Path) -> list[Any]:
    """All that look at the model or write it."""
    found: list[Any] = [
        KLTracker("cached", GIVEN, 1, name="given", batch_size=2),
        KLTracker("cached", GIVEN, name="at_validation", batch_size=2),
        KLTracker("copy", PROMPTS, 1, name="sampled", batch_size=2, max_new_tokens=6),
        KLTracker("copy", None, 1, name="batch"),
        KLTracker("copy", name="val_batch"),
        GenerationSamples(PROMPTS, 2, max_new_tokens=5, batch_size=2, terminal=False),
        WinRate(PROMPTS, longer, every_n_steps=2, max_new_tokens=5, batch_size=2),
        WinRate(PROMPTS, longer, name="at_validation", max_new_tokens=5, batch_size=2),
        Sentinel(every_n_steps=1, prompts=PROMPTS, max_new_tokens=4),
        Throughput(1),
        ExportHF(folder / "export", every_n_steps=2),
        # Not the share of SyncReference: margins of an average that equals the reference are rounding.
        WeightAverage("ema", 0.7, directory=str(folder / "average")),
        MergeModels(str(folder / "mixed"), "slerp"),
        RichProgress(seconds=0.0),
    ]
    if kind.endswith("lora"):
        found += [KLTracker("adapter_off", None, 1, name="off"), MergeAdapters(str(folder / "merged"))]
    return found


class Weights(L.Callback):
    """The trained weights at the end, whole."""

    def on_train_end(self, trainer: Any, module: Any) -> None:
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        weights = get_model_state_dict(module, options=options)
        if trainer.is_global_zero:
            torch.save(weights, Path(trainer.default_root_dir) / "trained.pt")


def main(strategy: str, processes: int, out: Path, kind: str, checkpoint: str | None = None) -> None:
    torch.set_num_threads(1)
    L.seed_everything(0)
    bare, kind = kind.endswith("_bare"), kind.removesuffix("_bare")
    looking = [] if bare else callbacks(kind, out.parent)
    # It changes what is trained.
    syncing = [SyncReference(0.5, 1)] if kind.endswith("lora") else []
    # Ours leave frozen weights out of a checkpoint, which Lightning's directories of shards do not allow.
    sharded: Any = ModelParallelStrategy(
        processes, 1, save_distributed_checkpoint=kind.startswith("stranger")
    )
    chosen = sharded if strategy == "fsdp2" else "ddp" if processes > 1 else "auto"
    if strategy == "zero2":
        chosen = ZeroStrategy(2)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=processes,
        strategy=chosen,
        max_steps=6 if checkpoint else 3,
        val_check_interval=3,
        limit_val_batches=3,
        num_sanity_val_steps=0,
        logger=[] if bare else [CSVLogger(out.parent, "", ""), TensorBoardLogger(out.parent, "", "")],
        enable_checkpointing=False,
        enable_progress_bar=not bare,
        enable_model_summary=False,
        default_root_dir=out.parent,
        use_distributed_sampler=False,
        log_every_n_steps=1,
        callbacks=[*looking, *syncing, Weights()],
    )
    if kind == "dpo_lora":
        fitted = ours(processes)
    elif kind in ("grpo_lora", "ppo"):
        fitted = sampling(kind, processes, trainer.global_rank, 3 if checkpoint else 0)
    else:
        tokenizer = load_tokenizer("lit-align/tiny")
        fitted = stranger(tokenizer, processes, trainer.global_rank, kind.endswith("lora"))
    trainer.fit(*fitted, ckpt_path=checkpoint, weights_only=False)
    metrics = {key: float(value) for key, value in trainer.callback_metrics.items()}
    trainer.save_checkpoint(out.with_suffix(".ckpt"))
    module, *data = fitted
    trainer.validate(module, data[-1], verbose=False)
    after = {f"after/{key}": float(value) for key, value in trainer.callback_metrics.items()}
    if trainer.is_global_zero:
        speed = {key for key in metrics if "throughput" in key and not key.endswith("/tokens")}
        metrics = {k: v for k, v in metrics.items() if k not in speed}
        out.write_text(json.dumps(metrics | after))


def run(arguments: list[str]) -> None:
    main(arguments[0], int(arguments[1]), Path(arguments[2]), *arguments[3:])
