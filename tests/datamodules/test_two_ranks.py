import json
import subprocess
import sys

import pytest

SCRIPT = """
import json, sys
import lightning as L, torch
from lit_align.datamodules import SupervisedDataModule

ROWS = [{"prompt": f"{a} and", "completion": f" {b}"} for a in range(6) for b in range(8)][:43]

class Counting(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = {"train": [], "val": []}
    def training_step(self, batch, index):
        self.seen["train"].append(batch.rows)
        return self.weight * batch.weights.sum()
    def validation_step(self, batch, index):
        self.seen["val"].append(batch.rows)
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)
    def on_train_end(self):
        with open(f"{sys.argv[2]}/seen{self.trainer.global_rank}.json", "w") as file:
            json.dump(self.seen, file)

if __name__ == "__main__":
    world = int(sys.argv[1])
    DATA = SupervisedDataModule(train=ROWS, val=ROWS[:7], tokenizer="lit-align/tiny", batch_size=4)
    L.Trainer(
        max_epochs=1, accelerator="cpu", devices=world, strategy="ddp" if world > 1 else "auto", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, num_sanity_val_steps=0,
    ).fit(Counting(), DATA)
"""


@pytest.mark.slow
def test_two_processes_share_what_one_sees(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    seen = {}
    for world in (1, 2):
        subprocess.run(
            [sys.executable, script, str(world), tmp_path], check=True, capture_output=True, timeout=300
        )
        seen[world] = [json.loads((tmp_path / f"seen{rank}.json").read_text()) for rank in range(world)]
    (alone,), (first, second) = seen[1], seen[2]
    turns = [batch for turn in zip(first["train"], second["train"], strict=True) for batch in turn]
    # 11 batches do not divide: the last one is shared by two.
    assert turns[:10] == alone["train"][:10]
    assert [*turns[10], *turns[11]] == alone["train"][10]
    assert sorted(row for batch in first["val"] + second["val"] for row in batch) == list(range(7))
