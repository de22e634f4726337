"""One optimiser step of an algorithm on a given number of processes; rank 0 saves gradients and metrics.

Arguments: ``ALGORITHM PROCESSES ACCUMULATION OUT``.
"""

from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader

from lit_align import DPO, SFT, Forest, RewardModel
from lit_align.algorithms.optim import OptimConfig

POLICY: dict[str, Any] = {
    "architecture": {
        "model_type": "llama",
        "vocab_size": 61,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 128,
    },
    "seed": 1,
}
LORA = {"lora": {"r": 4, "extra": {"init_lora_weights": False}}}
# Parts of very different numbers on the two processes; tied, so that head and embedding share a gradient.
TIED = POLICY | {"architecture": POLICY["architecture"] | {"tie_word_embeddings": True}}
PARTS = OptimConfig(micro_batch_tokens=30)
MODULES = {
    "sft_parts": lambda: SFT(dict(TIED), optim=PARTS),
    "dpo_parts": lambda: DPO(dict(POLICY), optim=PARTS),
    "sft": lambda: SFT(dict(POLICY)),
    "reward": lambda: RewardModel(dict(POLICY), center_rewards_coefficient=0.1),
    "dpo": lambda: DPO(dict(POLICY), loss={"sigmoid": 1.0, "sft": 0.5}),
    "sft_lora": lambda: SFT(POLICY | LORA),
    "reward_lora": lambda: RewardModel(POLICY | LORA, center_rewards_coefficient=0.1),
    "dpo_lora": lambda: DPO(POLICY | LORA),
}


def pairs(count: int) -> Forest:
    generator = torch.Generator().manual_seed(0)

    def ids(longest: int) -> list[int]:
        length = int(torch.randint(1, longest, (1,), generator=generator))
        return torch.randint(4, 61, (length,), generator=generator).tolist()

    return Forest.from_lists([ids(9) for _ in range(count)], [[ids(20), ids(20)] for _ in range(count)])


class Keep(L.Callback):
    def __init__(self, out: str) -> None:
        self.out = out
        self.grads: dict[str, torch.Tensor] = {}

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        found = {n: p.grad.clone() for n, p in module.policy.named_parameters() if p.grad is not None}
        self.grads = found

    def on_train_end(self, trainer: Any, module: Any) -> None:
        if trainer.is_global_zero:
            metrics = {k: float(v) for k, v in trainer.callback_metrics.items()}
            torch.save({"grads": self.grads, "metrics": metrics}, self.out)


def main(algorithm: str, processes: int, accumulation: int, out: str) -> None:
    torch.set_num_threads(1)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=processes,
        strategy="ddp" if processes > 1 else "auto",
        max_steps=1,
        accumulate_grad_batches=accumulation,
        log_every_n_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=Path(out).parent,
        use_distributed_sampler=False,
        callbacks=[Keep(out)],
    )
    batch = pairs(8)
    share = 8 // (processes * accumulation)
    mine = range(trainer.global_rank, processes * accumulation, processes)
    parts = [batch.select(list(range(i * share, (i + 1) * share))) for i in mine]
    trainer.fit(MODULES[algorithm](), DataLoader(parts, batch_size=None))  # type: ignore[arg-type]


def run(arguments: list[str]) -> None:
    main(arguments[0], int(arguments[1]), int(arguments[2]), arguments[3])
