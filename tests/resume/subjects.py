"""What is trained in the runs of these tests: algorithms on tiny models, and data for each."""

from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch.utils.data import Dataset

from lit_align import DPO, SFT, RewardModel
from lit_align.algorithms.a2c import A2C
from lit_align.algorithms.grpo import GRPO
from lit_align.algorithms.optim import OptimConfig
from lit_align.algorithms.ppo import PPO
from lit_align.algorithms.reinforce_pp import ReinforcePP
from lit_align.algorithms.rloo import RLOO
from lit_align.algorithms.shaping import KLPenalty, ScoreShaping
from lit_align.datamodules import PreferenceDataModule, PromptDataModule, SupervisedDataModule
from lit_align.rollouts.sampling import Sampling
from lit_align.scoring.references import EMA, Cached

POLICY: dict[str, Any] = {
    "architecture": {
        "model_type": "llama",
        "vocab_size": 1024,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
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
