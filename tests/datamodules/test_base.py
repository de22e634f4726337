import lightning as L
import pytest
import torch
from torch.utils.data import DistributedSampler

from lit_align.batches import Forest
from lit_align.datamodules import PreferenceDataModule, SupervisedDataModule
from lit_align.datamodules.bad_rows import DataError
from lit_align.datamodules.sampling import BatchOrder

WORDS = ["yes", "no", "maybe", "fine", "one", "two", "three", "four", "five", "six"]
ROWS = [{"prompt": "Answer:", "completion": f" {a} {b}"} for a in WORDS[:5] for b in WORDS]
PAIRS = [{"prompt": f"Answer {b}:", "chosen": f" {b} yes", "rejected": " no"} for b in WORDS]


class Foreign(L.LightningModule):
    """Somebody's own module: an embedding, a head, no knowledge of this project but the batch."""

    def __init__(self, vocabulary=500, tokenizer=None):
        super().__init__()
        self.embed = torch.nn.Embedding(vocabulary, 8)
        self.head = torch.nn.Linear(8, vocabulary)
        self.tokenizer = tokenizer
        self.seen = {"train": [], "val": [], "test": [], "predict": []}

    def loss(self, batch, stage):
        if isinstance(batch, Forest):
            self.seen[stage] += batch.rows
            batch = batch.padded(0)
        logits = self.head(self.embed(batch["input_ids"][:, :-1]))
        return torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch["labels"][:, 1:])

    def training_step(self, batch, index):
        return self.loss(batch, "train")

    def validation_step(self, batch, index):
        self.loss(batch, "val")

    def test_step(self, batch, index):
        self.loss(batch, "test")

    def predict_step(self, batch, index):
        self.loss(batch, "predict")
        return batch.rows

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(tmp_path, **options):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return L.Trainer(accelerator="cpu", default_root_dir=tmp_path, **quiet, **options)


@pytest.mark.parametrize("layout", ["ragged", "padded"])
@pytest.mark.parametrize(("kind", "rows"), [(SupervisedDataModule, ROWS), (PreferenceDataModule, PAIRS)])
def test_a_foreign_project_trains_on_the_batches(plain, tmp_path, kind, rows, layout):
    run = trainer(tmp_path, max_steps=2)
    module = Foreign()
    before = module.head.bias.detach().clone()
    run.fit(module, kind(train=rows, tokenizer=plain, batch_size=2, layout=layout))
    assert run.global_step == 2
    assert torch.isfinite(module.head.bias).all()
    assert not torch.equal(module.head.bias, before)


@pytest.mark.parametrize("workers", [0, 2])
def test_every_row_once_an_epoch_and_another_order_in_the_next(plain, tmp_path, workers):
    module = Foreign()
    data = SupervisedDataModule(train=ROWS, val=ROWS[:7], tokenizer=plain, num_workers=workers)
    trainer(tmp_path, max_epochs=2, num_sanity_val_steps=0).fit(module, data)
    first, second = module.seen["train"][:50], module.seen["train"][50:]
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second
    assert module.seen["val"] == list(range(7)) * 2
    again = Foreign()
    same = SupervisedDataModule(train=ROWS, tokenizer=plain)
    trainer(tmp_path, max_epochs=2).fit(again, same)
    assert again.seen["train"] == module.seen["train"]


def test_the_tokenizer_of_the_module_in_training_is_taken(plain, tmp_path):
    data = SupervisedDataModule(train=ROWS)
    trainer(tmp_path, max_steps=1).fit(Foreign(tokenizer=plain), data)
    assert data.tokenizer is plain
    with pytest.raises(DataError, match="Foreign has no attribute 'tokenizer'"):
        trainer(tmp_path, max_steps=1).fit(Foreign(), SupervisedDataModule(train=ROWS))


def test_another_module_brings_its_own_tokens(plain, chat, tmp_path):
    data = SupervisedDataModule(train=ROWS, shuffle=False)
    ends = []
    for tokenizer in (plain, chat):
        trainer(tmp_path, max_steps=1).fit(Foreign(tokenizer=tokenizer), data)
        ends.append(next(iter(data.train_dataloader())).completion_ids[-1].item())
    assert ends == [plain.eos_token_id, chat.eos_token_id]


def test_alone_it_needs_a_tokenizer():
    with pytest.raises(DataError, match="used without a trainer"):
        SupervisedDataModule(train=ROWS).setup("fit")
    with pytest.raises(DataError, match=r"no tokenizer './nowhere'"):
        SupervisedDataModule(train=ROWS, tokenizer="./nowhere").setup("fit")


def test_all_the_stages(plain, tmp_path):
    module, data = Foreign(), SupervisedDataModule(train=ROWS, val=ROWS[:6], test=ROWS[:5], tokenizer=plain)
    run = trainer(tmp_path, max_epochs=1)
    run.validate(module, data)
    run.test(module, data)
    predicted = run.predict(module, data)
    assert [row for rows in predicted for row in rows] == list(range(6))
    assert module.seen["val"] == list(range(6))
    assert module.seen["test"] == list(range(5))
    assert set(data.report) == {"val", "test", "predict"}


def test_predict_has_a_source_of_its_own(plain, tmp_path):
    data = SupervisedDataModule(val=ROWS, predict=ROWS[:3], tokenizer=plain)
    predicted = trainer(tmp_path).predict(Foreign(), data)
    assert [row for rows in predicted for row in rows] == [0, 1, 2]


def test_a_shipped_data_set_brings_its_held_out_rows(plain):
    assert SupervisedDataModule(train=ROWS, tokenizer=plain).val_dataloader() == []
    data = PreferenceDataModule(train="lit-align/manners-pairs", tokenizer="lit-align/tiny", limit=8)
    data.setup("fit")
    assert data.report["val"]["rows_kept"] == 8


@pytest.mark.parametrize("stage", ["fit", "validate", "test", "predict"])
def test_a_stage_without_rows_is_named(plain, stage):
    with pytest.raises(DataError, match=f"SupervisedDataModule has no rows to {stage} with"):
        SupervisedDataModule(tokenizer=plain).setup(stage)


def test_held_out_rows_are_not_trained_on(plain, tmp_path):
    data = PreferenceDataModule(train=PAIRS, val_fraction=0.3, tokenizer=plain)
    module = Foreign()
    trainer(tmp_path, max_epochs=1, num_sanity_val_steps=0).fit(module, data)
    assert len(module.seen["val"]) == 3
    assert sorted(module.seen["train"] + module.seen["val"]) == list(range(10))
    assert data.report["train"]["rows_kept"] == 7


def test_overfit_batches_sees_the_same_batches_again(plain, tmp_path):
    module = Foreign()
    data = SupervisedDataModule(train=ROWS, tokenizer=plain, batch_size=4)
    trainer(tmp_path, max_epochs=2, overfit_batches=2).fit(module, data)
    assert len(module.seen["train"]) == 16
    assert module.seen["train"][:8] == module.seen["train"][8:]


def test_the_loader_draws_nothing_from_the_global_generator(plain):
    data = SupervisedDataModule(train=ROWS, tokenizer=plain)
    data.setup("fit")
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    list(data.train_dataloader())
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_order_is_there_for_a_cursor(plain):
    data = SupervisedDataModule(train=ROWS, tokenizer=plain, batch_size=8)
    data.setup("fit")
    whole = [batch.rows for batch in data.train_dataloader()]
    loader = data.train_dataloader()
    assert isinstance(data.train_order, BatchOrder)
    assert isinstance(data.train_order, DistributedSampler)
    data.train_order.start_at(0, data.train_order.position(3))
    assert [batch.rows for batch in loader] == whole[3:]


def test_token_budgets_and_buckets(plain):
    data = SupervisedDataModule(train=ROWS, tokenizer=plain, batch_tokens=40, length_bucketing=True)
    data.setup("fit")
    batches = list(data.train_dataloader())
    assert max(batch.num_tokens for batch in batches) <= 40
    assert sorted(row for batch in batches for row in batch.rows) == list(range(50))


def test_a_mixture_of_sources(plain, tmp_path):
    import json

    for name, rows in [("a", ROWS[:20]), ("b", ROWS[20:30])]:
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    mixture = {str(tmp_path / "a.jsonl"): 1, str(tmp_path / "b.jsonl"): 2}
    data = SupervisedDataModule(train=mixture, val=mixture, tokenizer=plain)
    data.setup("fit")
    rows = [row for batch in data.train_dataloader() for row in batch.rows]
    assert [sum(row < 20 for row in rows), sum(row >= 20 for row in rows)] == [10, 20]
    assert [row for batch in data.val_dataloader() for row in batch.rows] == list(range(30))


def test_the_report_is_logged_once(plain, caplog):
    data = SupervisedDataModule(train=ROWS, tokenizer=plain)
    with caplog.at_level("INFO"):
        data.prepare_data()
        data.setup("fit")
        data.setup("fit")
    assert [r.message for r in caplog.records if "rows" in r.message] == [
        f"train: 50 of 50 rows, {data.report['train']['tokens']} tokens"
    ]
