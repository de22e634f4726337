"""Progress as lines."""

from collections.abc import Iterator
from typing import Any

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

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


class Stream(IterableDataset[int]):
    """Three numbers, and nobody knows how many."""

    def __iter__(self) -> Iterator[int]:
        return iter(range(3))


@pytest.mark.parametrize(
    ("data", "max_steps", "step"), [(range(3), 1000, "step 3/3 "), (Stream(), -1, "step 3 ")]
)
def test_the_end_is_the_one_that_lightning_stops_at(
    data: Dataset[int], max_steps: int, step: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The epochs, where they end first; none at all for streamed data without steps."""
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    trainer = L.Trainer(
        callbacks=[ProgressLines(1000.0)], max_epochs=1, max_steps=max_steps, accelerator="cpu", **quiet
    )
    trainer.fit(Stranger(), DataLoader(data))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step")]
    assert line.startswith(step)
