"""The project's training script: its own model, data, trainer and callbacks."""

import lightning as L
from data import ChatData
from lightning.pytorch.callbacks import Callback
from model import ChatModel

from lit_align.shipped import find  # the project's weights: the model that the package carries


class House(Callback):
    """Stands for whatever the project has: it keeps on working."""

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        print(f"{trainer.global_step} steps, train_loss {trainer.callback_metrics['train_loss']:.3f}")


L.seed_everything(0)
module = ChatModel(path=str(find("lit-align/tiny")))
data = ChatData(module.tokenizer)
trainer = L.Trainer(max_steps=4, callbacks=[House()], logger=False, enable_checkpointing=False)
trainer.fit(module, data)
