"""Progress as lines."""

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from lit_align.callbacks import ProgressLines


class Stranger(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        self.log("loss", self.weight.sum(), prog_bar=True)
        return self.weight.sum()

    def on_train_end(self) -> None:
        self.print("said by the module")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


@pytest.mark.parametrize(("seconds", "lines"), [(0.0, 4), (1000.0, 1)])
def test_a_line_now_and_then_and_one_at_the_end(
    seconds: float, lines: int, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = L.Trainer(
        callbacks=[ProgressLines(seconds)],
        max_steps=3,
        logger=False,
        accelerator="cpu",
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(Stranger(), DataLoader(range(9)))
    shown = capsys.readouterr().out.splitlines()
    assert "said by the module" in shown
    printed = [line for line in shown if line.startswith("step")]
    assert len(printed) == lines
    assert printed[-1].startswith("step 3/3")
    assert printed[-1].endswith("loss 1")
