"""A small language model of reviews, trained from its configuration."""

from pathlib import Path
from typing import Any

import lightning as L

from lit_align import SFT
from lit_align.algorithms.optim import OptimConfig
from lit_align.datamodules import SupervisedDataModule


def train(texts: list[str], tokenizer: Any, folder: Path, epochs: int = 6) -> None:
    """Train on the texts and write model and tokenizer to ``folder``."""
    L.seed_everything(0)
    architecture = {
        "model_type": "llama",
        "vocab_size": len(tokenizer),
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 128,
        "tie_word_embeddings": True,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    module = SFT(
        architecture, tokenizer=tokenizer, lr=4e-3, optim=OptimConfig(schedule="cosine", warmup=0.05)
    )
    data = SupervisedDataModule(
        train=[{"text": text} for text in texts], val_fraction=0.02, max_length=128, batch_size=32
    )
    trainer = L.Trainer(
        max_epochs=epochs,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data)
    loss = float(trainer.callback_metrics["val/loss"])
    print(f"language model: {loss:.2f} nats per token on held-out reviews")
    module.policy.model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
