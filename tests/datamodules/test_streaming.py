import json

import lightning as L
import pytest
import torch

from lit_align.datamodules import SupervisedDataModule
from lit_align.datamodules.bad_rows import DataError
from lit_align.datamodules.build import Pipeline
from lit_align.datamodules.options import BatchOptions
from lit_align.datamodules.sources import open_sources
from lit_align.datamodules.streaming import RowStream
from lit_align.datamodules.supervised import SupervisedDrafter
from lit_align.datamodules.tokenize import Encoder
from lit_align.datamodules.truncation import Limits


@pytest.fixture
def lines(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": "Answer:", "completion": f" {i}"}) for i in range(30)))
    return str(path)


def stream(source, tokenizer, mixed=False, buffer=1, rank=0, num_replicas=1, **options):
    pipeline = Pipeline(
        SupervisedDrafter(None, {}, True),
        Encoder(tokenizer),
        Limits(64, None, "keep_end", None),
        "error",
        0.01,
    )
    return RowStream(
        open_sources(source, streaming=True),
        mixed,
        pipeline,
        BatchOptions(**options),
        buffer,
        rank,
        num_replicas,
    )


def rows_of(batches):
    return [row.row for batch in batches for row in batch]


def test_a_stream_is_read_in_order(lines, plain):
    batches = list(stream(lines, plain, batch_size=8))
    assert [len(batch) for batch in batches] == [8, 8, 8, 6]
    assert rows_of(batches) == list(range(30))
    assert [len(batch) for batch in stream(lines, plain, batch_size=8, drop_last=True)] == [8, 8, 8]


def test_nothing_is_read_before_it_is_needed(plain, tmp_path):
    path = tmp_path / "rows.jsonl"
    good = json.dumps({"prompt": "Answer:", "completion": " yes"})
    path.write_text("\n".join([good] * 100 + ["not json"]))
    batches = iter(stream(str(path), plain, batch_size=8))
    assert len(next(batches)) == 8
    with pytest.raises(DataError, match=r"row 100 \(line 101\): not JSON"):
        list(batches)


def test_ranks_share_the_rows(lines, plain):
    parts = [rows_of(stream(lines, plain, rank=rank, num_replicas=3)) for rank in range(3)]
    assert sorted(row for part in parts for row in part) == list(range(30))
    assert {len(part) for part in parts} == {10}


def test_the_buffer_shuffles_by_seed_and_epoch(lines, plain):
    def order(epoch, **options):
        one = stream(lines, plain, buffer=10, **options)
        one.epoch = epoch
        return rows_of(one)

    assert sorted(order(0)) == list(range(30))
    assert order(0) == order(0)
    assert len({tuple(order(0)), tuple(order(1)), tuple(order(0, seed=1)), tuple(range(30))}) == 4


def test_a_budget_of_tokens(lines, plain):
    for batch in stream(lines, plain, batch_tokens=20):
        assert sum(row.num_tokens for row in batch) <= 20 or len(batch) == 1


def test_a_mixture_draws_by_weight(lines, plain, tmp_path):
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps({"prompt": "Question:", "completion": " x"}) + "\n")
    rows = rows_of(stream({lines: 1, str(other): 1000.0}, plain, mixed=True))
    assert sorted(rows) == list(range(31))
    batches = list(stream({lines: 1, str(other): 1000.0}, plain, mixed=True, batch_size=1))
    assert plain.decode(batches[0][0].prompt) == "Question:"


def test_truncation_that_takes_too_much_stops(plain):
    long = {"prompt": "Answer: " + "yes " * 200, "completion": " yes"}
    with pytest.raises(DataError, match="nothing left to learn"):
        list(stream([long] * 5, plain))


class Counting(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.rows = []

    def training_step(self, batch, index):
        self.rows += batch.rows
        return self.weight * batch.weights.sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_trainer_takes_steps_from_a_stream(lines, plain, tmp_path, workers):
    module = Counting()
    data = SupervisedDataModule(
        train=lines, tokenizer=plain, streaming=True, batch_size=4, shuffle_buffer=8, num_workers=workers
    )
    trainer = L.Trainer(
        max_steps=16,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, data)
    assert trainer.global_step == 16
    # Two epochs of 30 rows, each with an order of its own.
    assert sorted(module.rows[:30]) == list(range(30))
    assert module.rows[:30] != module.rows[30:]
