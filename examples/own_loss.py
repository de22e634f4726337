"""A preference loss of your own: a function of tensors, given to DPO as it is.

    python examples/own_loss.py

This one asks for a lead of at least ``margin`` between the rewards, as SimPO's target margin does, and keeps
the chosen completion likely by a share of its likelihood.
"""

import lightning as L
import torch.nn.functional as F
from torch import Tensor

from lit_align import DPO
from lit_align.datamodules import PreferenceDataModule


def target_margin(
    chosen_scores: Tensor, rejected_scores: Tensor, *, beta: float, margin: float = 1.0
) -> Tensor:
    """``-log σ(β(s_w - s_l) - margin)``, one value per pair.

    The names of the positional arguments say what the function is given; `docs/extending.md` lists them.
    """
    return -F.logsigmoid(beta * (chosen_scores - rejected_scores) - margin)


def main(steps: int = 20) -> dict[str, float]:
    """Train with it; returns the logged metrics."""
    L.seed_everything(0)
    module = DPO("lit-align/tiny", loss={target_margin: 1.0, "sft": 0.2}, beta=0.1, lr=1e-4)
    data = PreferenceDataModule(train="lit-align/manners-pairs", batch_size=8)
    trainer = L.Trainer(max_steps=steps, log_every_n_steps=5, logger=False, enable_checkpointing=False)
    trainer.fit(module, data)
    return {name: float(value) for name, value in trainer.logged_metrics.items()}


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name:26} {value:8.3f}")
