"""A short run of a foreign module with callbacks that look at the model; rank 0 writes what they found.

Arguments: ``STRATEGY PROCESSES OUT``, with ``ddp`` or ``fsdp2``.
"""

import json
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM

from lit_align.callbacks import GenerationSamples, KLTracker
from lit_align.models.tokenizers import load_tokenizer

PROMPTS = ["Hello", "Where is my order?", "Yes", "My lamp", "No"]
GIVEN = [{"prompt": prompt, "completion": " and so on"} for prompt in PROMPTS]


class Stranger(L.LightningModule):
    def __init__(self, tokenizer: Any) -> None:
        super().__init__()
        self.tokenizer = tokenizer
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
        if self.device_mesh is not None:
            from torch.distributed.fsdp import fully_shard

            for layer in self.net.model.layers:
                fully_shard(layer, mesh=self.device_mesh["data_parallel"])
            fully_shard(self.net, mesh=self.device_mesh["data_parallel"])

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.net(**batch, labels=batch["input_ids"]).loss

    def validation_step(self, batch: Any, batch_idx: int) -> None: ...

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.5)


def main(strategy: str, processes: int, out: Path) -> None:
    torch.set_num_threads(1)
    tokenizer = load_tokenizer("lit-align/tiny")
    trackers = [
        KLTracker("cached", GIVEN, 1, name="given", batch_size=2),
        KLTracker("cached", GIVEN, name="at_validation", batch_size=2),
    ]
    if strategy == "ddp":
        trackers += [
            KLTracker("copy", PROMPTS, 1, name="sampled", batch_size=2, max_new_tokens=6),
            KLTracker("copy", None, 1, name="batch"),
            KLTracker("copy", name="val_batch"),
        ]
    samples = GenerationSamples(PROMPTS, 2, max_new_tokens=5, batch_size=2, terminal=False)
    sharded: Any = ModelParallelStrategy(data_parallel_size=processes, tensor_parallel_size=1)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=processes,
        strategy=sharded if strategy == "fsdp2" else "ddp" if processes > 1 else "auto",
        max_steps=3,
        val_check_interval=3,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=out.parent,
        use_distributed_sampler=False,
        callbacks=[*trackers, samples],
    )
    ids = torch.randint(5, 200, (12, 7), generator=torch.Generator().manual_seed(0))
    rows = [{"input_ids": row} for row in ids[trainer.global_rank :: processes]]
    # The gradient of two processes with two rows each is that of one with four.
    size = 4 // processes
    loaders: Any = DataLoader(rows, size), DataLoader(rows, size)  # type: ignore[arg-type]
    trainer.fit(Stranger(tokenizer), *loaders)
    if trainer.is_global_zero:
        metrics = {key: float(value) for key, value in trainer.callback_metrics.items()}
        out.write_text(json.dumps(metrics))


def run(arguments: list[str]) -> None:
    main(arguments[0], int(arguments[1]), Path(arguments[2]))
