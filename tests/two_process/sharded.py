"""Three optimiser steps under a strategy; process zero saves losses and whole weights, and a checkpoint.

Arguments: ``ALGORITHM STRATEGY PROCESSES OUT [CHECKPOINT]``, the strategy being ``auto``,
``ddp``, ``lightning`` (its ModelParallelStrategy, one file), ``fsdp2`` (ours, a directory), ``tensor``
(ours, the products of each layer split over two), ``zero2`` or ``zero3``.
"""

import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader

from lit_align import DPO, SFT, RewardModel
from lit_align.algorithms.base import AlignModule
from lit_align.algorithms.optim import OptimConfig
from lit_align.callbacks import ExportHF, NanGuard, Sentinel
from lit_align.callbacks.sentinel_check import Seen
from lit_align.models import build
from lit_align.models.build import build_causal_lm
from lit_align.models.config import LoraConfig
from lit_align.models.critic import build_actor_critic, build_critic
from lit_align.models.value_head import ValueHeadConfig
from lit_align.outputs import LossOutput, Metric
from lit_align.runtime.checkpoint_io import AtomicCheckpointIO
from lit_align.runtime.sharded_strategy import ShardedStrategy
from lit_align.runtime.zero_state import gathered, is_partitioned
from lit_align.runtime.zero_strategy import ZeroStrategy
from lit_align.scoring.critic import ActorCritic, Critic
from lit_align.scoring.policy import Policy
from lit_align.scoring.references import EMA, AdapterOff, FromPath, FrozenCopy, SharedLayers
from lit_align.scoring.value_adapter import ValueAdapter

# The doctest collector imports scripts too, from elsewhere.
sys.path.insert(0, str(Path(__file__).parent))
from step import POLICY, pairs

STEPS = 3
LORA = POLICY | {"lora": {"r": 4, "extra": {"init_lora_weights": False}}}

# Every number of heads and features is even, and the halves of some are odd.
SPLIT: dict[str, Any] = {
    "architecture": POLICY["architecture"]
    | {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 34},
    "seed": 1,
}
SPLIT_LORA = SPLIT | {"lora": {"r": 3, "extra": {"init_lora_weights": False}}}

T5 = {
    "model_type": "t5",
    "vocab_size": 61,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 32,
    "num_layers": 2,
    "num_heads": 2,
    "dropout_rate": 0.0,
    "decoder_start_token_id": 0,
    "initializer_factor": 0.3,
}


class Valued(AlignModule):
    """Policy and critic on one batch: a loss of log-probs and one of values."""

    def __init__(self, policy: Any, critic: str, lr: float = 0.03) -> None:
        super().__init__(policy, lr=lr)
        self.kind, self.given = critic, policy
        self.critic: Any = None

    def build(self, model: Any) -> Policy:
        head = ValueHeadConfig("normal")
        if self.kind == "shared":
            return ActorCritic(*build_actor_critic(model, head))
        return Policy(build_causal_lm(model))

    def attach(self) -> None:
        head = ValueHeadConfig("normal")
        if self.kind == "own":
            self.critic = Critic(*build_critic(dict(self.given, seed=5), head)).train()
        if self.kind == "adapter":
            lora = LoraConfig(r=3, extra={"init_lora_weights": False})
            self.critic = ValueAdapter(self.policy, lora, head).train()

    def loss(self, scores: Any, batch: Any) -> LossOutput:
        total = -(scores.logps * batch.weights).sum()
        if scores.values is not None:
            total = total + self.value_loss(scores.values, batch).total
        return LossOutput(total, batch.weights.sum(), {})

    def value_loss(self, values: Any, batch: Any) -> LossOutput:
        each = (values - batch.completion_ids.remainder(3)) ** 2
        return LossOutput(0.1 * (each * batch.weights).sum(), batch.weights.sum(), {})

    def _run(self, batch: Any, logging: bool) -> LossOutput:
        output = super()._run(batch, logging)
        if self.critic is None:
            return output
        # A second pass over the policy's model, should the critic share it, before the backward pass.
        total = output.total + self.critic(batch, loss=self.value_loss).total
        return output._replace(total=total, metrics={"loss": Metric(total.detach(), output.weight)})


class Broken(SFT):
    """A finite loss with a gradient that is none: the derivative of a root at 0."""

    def loss(self, scores: Any, batch: Any) -> LossOutput:
        output = super().loss(scores, batch)
        return output._replace(total=output.total + (scores.logps.sum() * 0).sqrt())


MODULES = {
    "broken": lambda: Broken(dict(POLICY), lr=0.03),
    "actor_critic": lambda: Valued(dict(POLICY), "shared"),
    "actor_critic_lora": lambda: Valued(LORA, "shared"),
    "critic": lambda: Valued(dict(POLICY), "own"),
    "t5": lambda: Valued({"architecture": T5}, "shared"),
    "value_adapter": lambda: Valued(LORA, "adapter", lr=0.003),
    "sft": lambda: SFT(dict(POLICY), lr=0.03),
    "sft_window": lambda: SFT(dict(POLICY), lr=0.03, optim=OptimConfig(micro_batch_tokens=30)),
    "sft_checkpointed": lambda: SFT(POLICY | {"gradient_checkpointing": True}, lr=0.03),
    "sft_adam": lambda: SFT(dict(POLICY), lr=0.03),
    "sft_parts": lambda: SFT(dict(POLICY), lr=0.03, optim=OptimConfig(micro_batch_tokens=30)),
    "sft_lora": lambda: SFT(LORA, lr=0.003),
    "reward": lambda: RewardModel(dict(POLICY), lr=0.03),
    "reward_lora": lambda: RewardModel(LORA, lr=0.003),
    "dpo_copy": lambda: DPO(dict(POLICY), reference=FrozenCopy(), lr=0.03),
    "dpo_lora_off": lambda: DPO(LORA, reference=AdapterOff(), lr=0.003),
    "dpo_lora_copy": lambda: DPO(LORA, reference=FrozenCopy(), lr=0.003),
    "dpo_ema": lambda: DPO(dict(POLICY), reference=EMA(0.5, interval=1), lr=0.03),
    "dpo_lora_ema": lambda: DPO(LORA, reference=EMA(0.5, interval=1), lr=0.003),
}


MODULES |= {
    "split_actor_critic": lambda: Valued(dict(SPLIT), "shared"),
    "split_critic": lambda: Valued(dict(SPLIT), "own"),
    "split_value_adapter": lambda: Valued(SPLIT_LORA, "adapter", lr=0.003),
    "split_sft_parts": lambda: SFT(dict(SPLIT), lr=0.03, optim=OptimConfig(micro_batch_tokens=30)),
    "split_sft_tied": lambda: SFT(
        SPLIT | {"architecture": SPLIT["architecture"] | {"tie_word_embeddings": True}}, lr=0.03
    ),
    "split_qwen3": lambda: SFT(
        {"architecture": SPLIT["architecture"] | {"model_type": "qwen3", "head_dim": 4}, "seed": 1}, lr=0.03
    ),
    "split_qwen2": lambda: SFT(
        {"architecture": SPLIT["architecture"] | {"model_type": "qwen2"}, "seed": 1}, lr=0.03
    ),
    "split_checkpointed": lambda: SFT(SPLIT_LORA | {"gradient_checkpointing": True}, lr=0.003),
    "split_padded": lambda: SFT(
        {"architecture": SPLIT["architecture"] | {"model_type": "gpt_neox"}, "seed": 1}, lr=0.03
    ),
    "split_dpo_ema": lambda: DPO(dict(SPLIT), reference=EMA(0.5, 1), lr=0.03),
    "split_dpo_shared": lambda: DPO(dict(SPLIT), reference=SharedLayers(1), lr=0.03),
    "split_sft": lambda: SFT(dict(SPLIT), lr=0.03),
    "split_sft_lora": lambda: SFT(SPLIT_LORA, lr=0.003),
    "split_reward": lambda: RewardModel(dict(SPLIT), lr=0.03),
    "split_reward_lora": lambda: RewardModel(SPLIT_LORA, lr=0.003),
    "split_dpo_copy": lambda: DPO(dict(SPLIT), reference=FrozenCopy(), lr=0.03),
    "split_dpo_lora_off": lambda: DPO(SPLIT_LORA, reference=AdapterOff(), lr=0.003),
    "split_dpo_lora_copy": lambda: DPO(SPLIT_LORA, reference=FrozenCopy(), lr=0.003),
}

#: Models that are loaded, or adapted in ways that look at the weights.
LOADED = {"path": "lit-align/tiny"}
MODULES |= {
    "loaded": lambda: SFT(dict(LOADED), lr=0.003),
    "loaded_reward_lora": lambda: RewardModel(LOADED | {"lora": {"r": 2}}, lr=0.003),
    "loaded_pissa": lambda: SFT(
        LOADED | {"lora": {"r": 2, "extra": {"init_lora_weights": "pissa"}}}, lr=0.003
    ),
    # The first adapters are new, so that the reference is the base without them; the second are not.
    "loaded_default": lambda: DPO(LOADED | {"lora": {"r": 2}}, lr=0.003),
    "default": lambda: DPO(LORA, lr=0.003),
    "loaded_shared": lambda: DPO(dict(LOADED), reference=SharedLayers(1), lr=0.003),
    "loaded_critic": lambda: Valued(dict(LOADED), "own", lr=0.003),
    "loaded_value_adapter": lambda: Valued(LOADED | {"lora": {"r": 2}}, "adapter", lr=0.003),
    "loaded_reference": lambda: DPO(dict(LOADED), reference=FromPath("lit-align/tiny"), lr=0.003),
}


class Built(L.Callback):
    """On which device each process built its models, and whether all ended with the same buffers."""

    def __init__(self) -> None:
        self.devices: list[str] = []
        self.everywhere: list[list[str]] = []
        self.buffers = 0
        for name in ("_random", "_load"):
            # The script may run many times in one process.
            inner = getattr(getattr(build, name), "inner", getattr(build, name))

            def noting(*arguments: Any, inner: Any = inner) -> Any:
                model = inner(*arguments)
                self.devices.append(next(model.parameters()).device.type)
                return model

            noting.inner = inner  # type: ignore[attr-defined]
            setattr(build, name, noting)

    def on_train_start(self, trainer: Any, module: Any) -> None:
        self.everywhere = _gather(self.devices)
        own = dict(module.named_buffers())
        for name, buffer in own.items():
            first = _gather(buffer)[0]
            assert torch.equal(first, buffer), name
        self.buffers = sum("inv_freq" in name for name in own)


def _gather(value: Any) -> list[Any]:
    if not torch.distributed.is_initialized():
        return [value]
    found: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, value)
    return found


class Norms(Sentinel):
    """The gradient norms that a Sentinel sees."""

    def __init__(self, norms: list[float | None]) -> None:
        super().__init__(1)
        self.norms = norms

    def _look(self, trainer: Any, seen: Seen) -> None:
        self.norms.append(seen.grad_norm)


class Keep(L.Callback):
    def __init__(self, out: Path, built: Built) -> None:
        self.out = out
        self.built = built
        self.losses: list[float] = []
        self.norms: list[float | None] = []
        self.shards = 0
        self.held: dict[str, int] = {}

    def on_train_start(self, trainer: Any, module: Any) -> None:
        self.shards = sum(isinstance(p, DTensor) or is_partitioned(p) for p in module.parameters())
        if self.shards:
            assert self.shards == len(list(module.parameters()))
        own = {n: p.to_local() if isinstance(p, DTensor) else p for n, p in module.named_parameters()}
        self.held = {name: p.numel() for name, p in own.items()}

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        assert not any(is_partitioned(p) and p.numel() for p in module.parameters())
        self.losses.append(float(trainer.callback_metrics["train/loss"]))

    def on_train_end(self, trainer: Any, module: Any) -> None:
        whole = {}
        for name, p in module.named_parameters():
            with gathered(p):
                if p.requires_grad:
                    whole[name] = (p.full_tensor() if isinstance(p, DTensor) else p).detach().clone()
        # All processes gather; the first writes.
        if trainer.is_global_zero:
            found = {"weights": whole, "losses": self.losses, "shards": self.shards}
            found |= {"norms": self.norms}
            found |= {"held": self.held, "tokens": int(module.tokens_seen)}
            found |= {"built": self.built.everywhere, "frequencies": self.built.buffers}
            torch.save(found, self.out)


def main(algorithm: str, strategy: str, processes: int, out: Path, checkpoint: str | None) -> None:
    torch.set_num_threads(1)
    built = Built()
    chosen: Any = strategy
    first = 0 if checkpoint is None else int(AtomicCheckpointIO().load_checkpoint(checkpoint)["global_step"])
    if strategy == "fsdp2":
        chosen = ShardedStrategy(processes)
    splits = 2 if strategy == "tensor" else 1
    if strategy == "tensor":
        chosen = ShardedStrategy(processes // 2, 2)
    if strategy == "lightning":
        chosen = ModelParallelStrategy(processes, 1, save_distributed_checkpoint=False)
    if strategy.startswith("zero"):
        # So that these small weights are spread like large ones.
        chosen = ZeroStrategy(int(strategy[-1]), persistence_threshold=0)  # type: ignore[arg-type]
    windows = algorithm.endswith("_window") and processes > 1
    keep = Keep(out, built)
    norms = [Norms(keep.norms)] if strategy == "auto" or strategy.startswith("zero") else []
    trainer = L.Trainer(
        accelerator="cpu",
        devices=processes,
        strategy=chosen,
        max_steps=first + STEPS,
        log_every_n_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=out.parent,
        use_distributed_sampler=False,
        gradient_clip_val=1.0,
        accumulate_grad_batches=2 if windows else 1,
        plugins=[AtomicCheckpointIO()],
        callbacks=[built, keep, *norms, NanGuard(), ExportHF(out.with_suffix(""))],
    )
    # The processes that share products read the same rows.
    share = 8 * splits // processes
    rank = trainer.global_rank // splits
    everything = pairs(8 * (first + STEPS))
    batches = [everything.select(range(8 * s, 8 * s + 8)) for s in range(first, first + STEPS)]
    mine = [batch.select(range(rank * share, (rank + 1) * share)) for batch in batches]
    if windows:
        # One row, and the others.
        mine = [batch.select(rows) for batch in mine for rows in (range(1), range(1, share))]
    module = MODULES[algorithm]()
    # SGD, whose step is as exact as the gradient; Adam's blows rounding up where gradients are small.
    parts = module.optim.micro_batch_tokens
    module.optim = OptimConfig(
        name="torch.optim.SGD", schedule="constant", micro_batch_tokens=parts, extra={"momentum": 0.9}
    )
    if algorithm.endswith("_adam"):
        # Unless they are small beside this number.
        module.optim = OptimConfig(weight_decay=0.1, schedule="constant", extra={"eps": 0.1})
    loader = DataLoader(mine, batch_size=None)  # type: ignore[arg-type]
    trainer.fit(module, loader, ckpt_path=checkpoint, weights_only=True)
    trainer.save_checkpoint(out.with_suffix(".ckpt"))


def run(arguments: list[str]) -> None:
    checkpoint = arguments[4] if len(arguments) > 4 else None
    main(arguments[0], arguments[1], int(arguments[2]), Path(arguments[3]), checkpoint)
