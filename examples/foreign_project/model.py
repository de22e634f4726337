"""Someone else's LightningModule: a model of transformers with adapters, an optimiser, a loss."""

from typing import Any

import lightning as L
import peft
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer


class ChatModel(L.LightningModule):
    """Fine-tunes a causal language model on the house's own conversations."""

    def __init__(self, path: str, lr: float = 1e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        adapters = peft.LoraConfig(r=8, target_modules="all-linear")
        self.model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(path), adapters)
        self.tokenizer = AutoTokenizer.from_pretrained(path)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return self.model(**batch).loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=self.hparams.lr)
