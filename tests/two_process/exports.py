"""Two steps of someone's module with nothing but ExportHF, under any strategy.

Arguments: ``STRATEGY PROCESSES OUT KIND``, with ``ddp``, ``fsdp1``, ``fsdp1_layers`` (each layer wrapped
too), ``zero2`` or ``zero3``, and ``stranger``, ``stranger_tied`` or ``stranger_lora``.
"""

import functools
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import FSDPStrategy
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from lit_align.callbacks import ExportHF
from lit_align.runtime.zero_strategy import ZeroStrategy


class OnCPU(FSDPStrategy):
    """Lightning asks for a GPU by the class, and FSDP where no device is named; it needs none."""

    def _setup_model(self, model: Any) -> Any:
        return FullyShardedDataParallel(model, device_id=torch.device("cpu"), **self.kwargs)


class Stranger(L.LightningModule):
    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=40,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            initializer_range=0.3,
            tie_word_embeddings=kind == "stranger_tied",
        )
        self.net: Any = LlamaForCausalLM(config).train()
        if kind == "stranger_lora":
            import peft

            settings = peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
            self.net = peft.get_peft_model(self.net, settings)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.net(input_ids=batch, labels=batch).loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.5)


def chosen(strategy: str, processes: int) -> Any:
    if strategy == "fsdp1":
        return OnCPU()
    if strategy == "fsdp1_layers":
        layers = {LlamaDecoderLayer}
        return OnCPU(
            auto_wrap_policy=functools.partial(transformer_auto_wrap_policy, transformer_layer_cls=layers)
        )
    if strategy.startswith("zero"):
        return ZeroStrategy(int(strategy[-1]), persistence_threshold=0)  # type: ignore[arg-type]
    return strategy if processes > 1 else "auto"


def main(strategy: str, processes: int, out: Path, kind: str) -> None:
    torch.set_num_threads(1)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=processes,
        strategy=chosen(strategy, processes),
        max_steps=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=out,
        use_distributed_sampler=False,
        callbacks=[ExportHF(out, every_n_steps=1)],
    )
    ids = torch.randint(0, 40, (2, 4, 9), generator=torch.Generator().manual_seed(1))
    share = 4 // processes
    mine = ids[:, trainer.global_rank * share : (trainer.global_rank + 1) * share]
    trainer.fit(Stranger(kind), DataLoader(list(mine), batch_size=None))  # type: ignore[arg-type]


def run(arguments: list[str]) -> None:
    main(arguments[0], int(arguments[1]), Path(arguments[2]), arguments[3])
