"""A small model, and someone else's LightningModule around it, under either of Lightning's packages."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import pytest
import pytorch_lightning
import torch
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM

from lit_align.models.tokenizers import load_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return load_tokenizer("lit-align/tiny")


@pytest.fixture(scope="session")
def make_model(tokenizer: Any) -> Callable[..., Any]:
    """A random model of one seed, with adapters where asked for."""

    def make(lora: bool = False, seed: int = 0, dropout: float = 0.0) -> Any:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            config = LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
                initializer_range=0.3,
                attention_dropout=dropout,
            )
            model: Any = LlamaForCausalLM(config)
            if lora:
                import peft

                model = peft.get_peft_model(
                    model, peft.LoraConfig(r=4, target_modules="all-linear", lora_dropout=dropout)
                )
        return model

    return make


@pytest.fixture(params=[lightning, pytorch_lightning], ids=["lightning", "pytorch_lightning"])
def package(request: pytest.FixtureRequest) -> Any:
    """Both names that Lightning goes by; a module of one does not fit a trainer of the other."""
    return request.param


@pytest.fixture(scope="session")
def make_stranger(make_model: Callable[..., Any], tokenizer: Any) -> Callable[..., Any]:
    """A module in the style of someone else: padded batches, the model's own loss."""

    def make(package: Any = lightning, model: Any = None, lr: float = 0.05, **options: Any) -> Any:
        class Stranger(package.LightningModule):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__()
                self.language_model = (model if model is not None else make_model(**options)).train()
                self.tokenizer = tokenizer

            def training_step(self, batch: Any, batch_idx: int) -> Any:
                loss = self.language_model(**batch).loss
                self.log("loss", loss)
                return loss

            def validation_step(self, batch: Any, batch_idx: int) -> None:
                self.log("val_loss", self.language_model(**batch).loss)

            def configure_optimizers(self) -> Any:
                return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=lr)

        return Stranger()

    return make


@pytest.fixture(scope="session")
def rows() -> list[dict[str, Any]]:
    """Rows of a padded batch: left and right padding, labels with a masked prompt."""
    generator = torch.Generator().manual_seed(1)
    found = []
    for length in (9, 5, 7, 8, 4, 6, 9, 3):
        ids = torch.randint(5, 200, (length,), generator=generator)
        labels = ids.clone()
        labels[:2] = -100
        pad = 9 - length
        found.append(
            {
                "input_ids": torch.nn.functional.pad(ids, (0, pad), value=2),
                "attention_mask": torch.nn.functional.pad(torch.ones_like(ids), (0, pad), value=0),
                "labels": torch.nn.functional.pad(labels, (0, pad), value=-100),
            }
        )
    return found


@pytest.fixture(scope="session")
def loader(rows: list[dict[str, Any]]) -> Callable[..., Any]:
    """A loader of those rows."""
    return lambda size=2: DataLoader(rows, batch_size=size)  # type: ignore[arg-type]


@pytest.fixture
def make_trainer(tmp_path: Path) -> Callable[..., Any]:
    """A quiet trainer on the CPU."""

    def make(*callbacks: Any, package: Any = lightning, **options: Any) -> Any:
        defaults: dict[str, Any] = {
            "default_root_dir": tmp_path,
            "accelerator": "cpu",
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            "log_every_n_steps": 1,
        }
        return package.Trainer(callbacks=list(callbacks), **(defaults | options))

    return make
