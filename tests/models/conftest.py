"""Tiny models on disk, made once."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lit_align.models.build import build_causal_lm

ARCHITECTURE: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def architecture() -> dict[str, Any]:
    return dict(ARCHITECTURE)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float32 causal language model."""
    path = tmp_path_factory.mktemp("checkpoint")
    build_causal_lm(ARCHITECTURE).save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def half_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in bfloat16."""
    path = tmp_path_factory.mktemp("half_checkpoint")
    build_causal_lm(ARCHITECTURE).to(torch.bfloat16).save_pretrained(path)
    return path


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.tensor([[5, 6, 7, 8, 9], [11, 12, 13, 14, 15]])
