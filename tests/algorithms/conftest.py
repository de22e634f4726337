"""How an algorithm is run on given forests, through Lightning, with its gradients kept."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from lit_align.batches import Forest


@dataclass
class Run:
    """What one optimiser step left behind."""

    module: L.LightningModule
    grads: dict[str, torch.Tensor]
    metrics: dict[str, float]

    @property
    def grad_norm(self) -> float:
        return torch.stack([g.norm() for g in self.grads.values()]).norm().item()


class KeepGradients(L.Callback):
    def __init__(self) -> None:
        self.grads: dict[str, torch.Tensor] = {}

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        found = {n: p.grad.clone() for n, p in module.policy.model.named_parameters() if p.grad is not None}
        self.grads = found


@pytest.fixture
def one_step(tmp_path: Path) -> Callable[..., Run]:
    """``one_step(module, micro_batches)``: one optimiser step over all of them, logged."""

    def run(module: L.LightningModule, micro_batches: Sequence[Forest], **trainer: Any) -> Run:
        keep = KeepGradients()
        options: dict[str, Any] = {"callbacks": [keep], "logger": False, "enable_checkpointing": False}
        options |= {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
        options |= {"max_steps": 1, "accumulate_grad_batches": len(micro_batches), "log_every_n_steps": 1}
        fit = L.Trainer(default_root_dir=tmp_path, **(options | trainer))
        fit.fit(module, DataLoader(list(micro_batches), batch_size=None))  # type: ignore[arg-type]
        metrics = {k.removeprefix("train/"): float(v) for k, v in fit.callback_metrics.items()}
        return Run(module, keep.grads, metrics)

    return run
