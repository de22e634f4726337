"""Someone else's LightningModule: a model of transformers, an optimiser, a loss. Nothing of lit-align."""

from typing import Any

import lightning as L
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer


class ChatModel(L.LightningModule):
    """Fine-tunes a causal language model on the house's own conversations."""

    def __init__(self, path: str, lr: float = 1e-4) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.model = AutoModelForCausalLM.from_pretrained(path)
        self.tokenizer = AutoTokenizer.from_pretrained(path)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return self.model(**batch).loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=self.hparams.lr)
