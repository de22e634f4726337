"""The export at the end of fit, with a module that is not ours."""

from pathlib import Path

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from lit_align.callbacks import ExportHF


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
