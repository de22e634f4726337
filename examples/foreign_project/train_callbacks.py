"""The project's training script: its own model, data, trainer and callbacks."""

import sys

import lightning as L
from data import ChatData
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from model import ChatModel

from lit_align.callbacks import ExactResume, GenerationSamples, KLTracker, MergeAdapters
from lit_align.shipped import find  # the project's weights: the model that the package carries


class House(Callback):
    """Stands for whatever the project has: it keeps on working."""

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        print(f"{trainer.global_step} steps, train_loss {trainer.callback_metrics['train_loss']:.3f}")


steps = int(sys.argv[1]) if len(sys.argv) > 1 else 4
L.seed_everything(0)
module = ChatModel(path=str(find("lit-align/tiny")))
data = ChatData(module.tokenizer)
saves = ModelCheckpoint("checkpoints", every_n_train_steps=1, save_last=True)
trainer = L.Trainer(
    max_steps=steps,
    logger=False,
    callbacks=[
        House(),
        saves,
        KLTracker(every_n_steps=2),
        GenerationSamples([[{"role": "user", "content": "My lamp broke."}]], every_n_steps=2),
        MergeAdapters("merged"),
        ExactResume(),
    ],
)
trainer.fit(module, data, ckpt_path="last")
