"""The export at the end of fit, with a module that is not ours."""

from pathlib import Path

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from lit_align.batches import Forest
from lit_align.callbacks import ExportHF
from lit_align.models.critic import build_actor_critic, build_critic
from lit_align.runtime.trainable import keep_saved, saved_names
from lit_align.scoring.critic import ActorCritic, Critic


class Stranger(L.LightningModule):
    def __init__(self, model: torch.nn.Module | None) -> None:
        super().__init__()
        if model is not None:
            self.model = model
        self.weight = torch.nn.Parameter(torch.ones(1))

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        loss = self.weight.sum()
        return loss + self.model.lm_head.weight.square().sum() if hasattr(self, "model") else loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def _fit(module: Stranger, tmp_path: Path, callback: ExportHF) -> None:
    trainer = L.Trainer(
        default_root_dir=tmp_path,
        callbacks=[callback],
        max_steps=1,
        logger=False,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader([0, 1]))


def test_the_trained_weights_are_exported(tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=16, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    model = LlamaForCausalLM(config)
    before = model.lm_head.weight.detach().clone()
    _fit(Stranger(model), tmp_path, ExportHF(tmp_path / "out"))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)
    assert not torch.equal(loaded.lm_head.weight, before)


def test_a_module_without_a_model_is_told(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="nothing is exported"):
        _fit(Stranger(None), tmp_path, ExportHF())
    assert not (tmp_path / "export").exists()


class ActsAndValues(Stranger):
    """A module with a policy that has a value head, and a critic of its own."""

    def __init__(self) -> None:
        super().__init__(None)
        torch.manual_seed(0)
        source = {
            "model_type": "llama",
            "vocab_size": 16,
            "hidden_size": 8,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
        }
        self.policy = ActorCritic(*build_actor_critic(source)).train()
        self.critic = Critic(*build_critic(source)).train()

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        forest = Forest.from_lists([[1, 2]], [[[3, 4]]])
        values = self.policy(forest).values + self.critic(forest)
        return ((values - 1) ** 2).sum() + self.weight.sum()

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        keep_saved(checkpoint, saved_names(self))


def test_value_heads_and_critic_are_exported_and_in_the_checkpoint(tmp_path: Path) -> None:
    module = ActsAndValues()
    module.policy.model.requires_grad_(False)
    _fit(module, tmp_path, ExportHF(tmp_path / "out"))
    assert module.critic.value_head.summary.bias.item() != 0
    for scorer, found in (
        (module.policy, build_actor_critic(str(tmp_path / "out"))),
        (module.critic, build_critic(str(tmp_path / "out" / "critic"))),
    ):
        for ours, theirs in zip((scorer.model, scorer.value_head), found, strict=True):
            for name, value in ours.state_dict().items():
                assert torch.equal(value, theirs.state_dict()[name]), name
    module.trainer.save_checkpoint(tmp_path / "last.ckpt")
    names = set(torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"])
    assert {"policy.value_head.summary.weight", "critic.value_head.summary.bias"} <= names
    assert "critic.model.embed_tokens.weight" in names
    assert not any(name.startswith("policy.model.") for name in names), "a frozen policy is not in it"
