from datetime import date
from itertools import pairwise

import lightning as L
import numpy as np
import pytest
import torch

from lit_align.datamodules import PromptDataModule
from lit_align.datamodules.bad_rows import BadRow, DataError

USER = {"role": "user", "content": "How are you?"}
FINE = {"role": "assistant", "content": "Fine."}
HEADER = "<|im_start|>user\nHow are you?<|im_end|>\n<|im_start|>assistant\n"
ROWS = [{"prompt": f"Question {i}:", "answer": i} for i in range(10)]


def load(rows, tokenizer, **options):
    module = PromptDataModule(train=rows, tokenizer=tokenizer, **{"shuffle": False, **options})
    module.setup("fit")
    return module


def batches(rows, tokenizer, **options):
    return list(load(rows, tokenizer, **options).train_dataloader())


def prompts_of(batch, tokenizer):
    ends = batch.prompt_offsets
    ids = batch.prompt_ids.tolist()
    return [tokenizer.decode(ids[a:b]) for a, b in pairwise(ends)]


class Steps(L.LightningModule):
    """Takes ``steps_per_rollout`` batches for each rollout, and notes the rows of all."""

    def __init__(self, steps=None):
        super().__init__()
        if steps is not None:
            self.steps_per_rollout = steps
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = {"train": [], "val": []}

    def training_step(self, batch, index):
        self.seen["train"].append(batch.rows)
        return self.weight * batch.num_prompts

    def validation_step(self, batch, index):
        self.seen["val"].append(batch.rows)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(module, data, tmp_path, **options):
    options = {"max_epochs": 1, "num_sanity_val_steps": 0, "logger": False, **options}
    trainer = L.Trainer(
        accelerator="cpu",
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        **options,
    )
    trainer.fit(module, data)
    return module.seen


def test_a_batch_holds_prompts_and_no_completions(plain):
    first, *_ = batches(ROWS, plain, batch_size=4)
    assert (first.num_prompts, first.num_completions, first.parents) == (4, 0, ())
    assert prompts_of(first, plain) == [f"Question {i}:" for i in range(4)]
    assert first.rows == (0, 1, 2, 3)


def test_all_columns_go_along_as_they_were_read(plain):
    row = {
        "prompt": "Say it:",
        "answer": 61,
        "share": 0.1,
        "none": None,
        "nested": {"a": [1, {"b": "ü"}], "yes": True},
    }
    (batch,) = batches([row, {**row, "answer": "x"}], plain)
    assert batch.records == (row, {**row, "answer": "x"})
    assert batch.select([1]).records[0]["answer"] == "x"


def test_arrays_and_dates_become_plain_data(plain):
    row = {"prompt": "Say:", "box": np.arange(3), "one": np.float32(0.5), "day": date(2024, 2, 1)}
    (batch,) = batches([row], plain)
    assert batch.records == ({"prompt": "Say:", "box": [0, 1, 2], "one": 0.5, "day": "2024-02-01"},)


def test_what_cannot_go_along_is_a_bad_row(plain):
    with pytest.raises(
        BadRow, match=r"row 1: not all columns can go along.*bytes b'x'; leave the column out"
    ):
        load([ROWS[0], {"prompt": "Say:", "image": b"x"}], plain)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [USER]},
        {"messages": [USER]},
        {"conversations": [{"from": "human", "value": "How are you?"}]},
        {"prompt": USER},
    ],
)
def test_messages_end_with_the_header_of_the_assistant(chat, row):
    (batch,) = batches([row], chat)
    assert prompts_of(batch, chat) == [HEADER]
    assert batch.records == (row,)


def test_a_text_prompt_is_continued_as_it_stands(chat):
    (batch,) = batches([{"prompt": "How are you?"}], chat)
    assert prompts_of(batch, chat) == ["How are you?"]


def test_earlier_turns_belong_to_the_prompt(chat):
    (batch,) = batches([{"messages": [USER, FINE, USER]}], chat)
    told = prompts_of(batch, chat)[0]
    assert told.startswith(HEADER + "Fine.")
    assert told.endswith("<|im_start|>assistant\n")


def test_bos_stands_in_front_of_text_once(spaced):
    for prompt in ("Answer", "<s>Answer"):
        (batch,) = batches([{"prompt": prompt}], spaced)
        assert batch.prompt_ids.tolist().count(spaced.bos_token_id) == 1
        assert batch.prompt_ids[0] == spaced.bos_token_id


def test_a_conversation_that_is_over_is_refused(chat):
    with pytest.raises(BadRow, match=r"row 0: column 'messages': the last turn is the assistant's"):
        load([{"messages": [USER, FINE]}], chat)


@pytest.mark.parametrize("row", [{"prompt": ""}, {"prompt": None}, {"prompt": 5}, {"question": "x"}, "text"])
def test_bad_rows_are_counted(plain, row):
    with pytest.raises(BadRow, match="row 1"):
        load([ROWS[0], row], plain)
    report = load([ROWS[0], row], plain, on_bad_row="drop").report["train"]
    assert (report["bad_rows"], report["rows_kept"]) == (1, 1)


def test_columns_are_mapped_whatever_their_name(plain):
    rows = [{"question": "How many:", "solution": 4, "prompt": "not this"}]
    (batch,) = batches(rows, plain, columns={"prompt": "question", "answer": "solution"})
    assert prompts_of(batch, plain) == ["How many:"]
    assert batch.records == ({"prompt": "How many:", "answer": 4},)


def test_a_long_prompt_keeps_its_end(plain):
    rows = [{"prompt": "Answer: yes no maybe"}]
    (whole,) = batches(rows, plain)
    module = load(rows, plain, max_prompt_length=3)
    (cut,) = module.train_dataloader()
    assert cut.prompt_ids.tolist() == whole.prompt_ids.tolist()[-3:]
    assert module.report["train"]["truncated_prompts"] == 1
    # What reward functions read is the whole.
    assert cut.records == tuple(rows)
    (start,) = batches(rows, plain, max_prompt_length=3, truncation="keep_start")
    assert start.prompt_ids.tolist() == whole.prompt_ids.tolist()[:3]


def test_records_come_from_the_cache_and_are_part_of_its_key(plain):
    first = batches(ROWS, plain)
    again = batches(ROWS, plain)
    assert [b.records for b in first] == [b.records for b in again]
    other = batches([{**row, "answer": row["answer"] + 1} for row in ROWS], plain)
    assert [r["answer"] for b in other for r in b.records] == list(range(1, 11))


def test_records_tell_the_data_of_a_run_from_other_data(plain):
    from lit_align.runtime.fingerprint import fingerprint

    same, again, other = (
        fingerprint(load(rows, plain).train_dataloader().dataset)
        for rows in (ROWS, list(ROWS), [*ROWS[:-1], {**ROWS[-1], "answer": 0}])
    )
    assert same == again != other


def test_sources_are_joined_and_held_out_with_their_records(plain):
    module = load([ROWS[:6], ROWS[6:]], plain, val_fraction=0.3)
    train = [r for b in module.train_dataloader() for r in b.records]
    val = [r for b in module.val_dataloader() for r in b.records]
    assert len(val) == 3
    assert sorted(r["answer"] for r in train + val) == list(range(10))


def test_token_budgets_count_the_prompts(plain):
    rows = [{"prompt": "Answer: " + "yes " * n} for n in range(1, 20)]
    found = batches(rows, plain, batch_tokens=40, length_bucketing=True, shuffle=True)
    assert max(sum(b.prompt_lengths) for b in found if b.num_prompts > 1) <= 40
    assert sorted(row for b in found for row in b.rows) == list(range(19))


@pytest.mark.parametrize("streaming", [False, True])
def test_training_batches_are_repeated_for_the_steps_of_a_rollout(plain, tmp_path, streaming):
    data = PromptDataModule(train=ROWS, val=ROWS[:4], tokenizer=plain, batch_size=4, streaming=streaming)
    seen = fit(Steps(3), data, tmp_path)
    assert len(seen["train"]) == 9
    assert [seen["train"][i] for i in (0, 3, 6)] == [seen["train"][i] for i in (2, 5, 8)]
    assert sorted(row for rows in seen["train"][::3] for row in rows) == list(range(10))
    # Validation needs every prompt once.
    assert seen["val"] == [(0, 1, 2, 3)]


def test_a_module_that_knows_nothing_of_rollouts_sees_each_batch_once(plain, tmp_path):
    seen = fit(Steps(), PromptDataModule(train=ROWS, tokenizer=plain, batch_size=4), tmp_path)
    assert sorted(row for rows in seen["train"] for row in rows) == list(range(10))


def test_workers_keep_the_repeats_together(plain, tmp_path):
    data = PromptDataModule(train=ROWS, tokenizer=plain, batch_size=4, num_workers=2)
    seen = fit(Steps(2), data, tmp_path)
    assert seen["train"][::2] == seen["train"][1::2]


def test_overfit_batches_sees_the_first_batch(plain, tmp_path):
    data = PromptDataModule(train=ROWS, tokenizer=plain, batch_size=4)
    seen = fit(Steps(2), data, tmp_path, overfit_batches=3)
    assert seen["train"][0] == seen["train"][1] != seen["train"][2]


def test_shipped_prompts():
    from lit_align.models.tokenizers import load_tokenizer

    tokenizer = load_tokenizer("lit-align/tiny")
    module = PromptDataModule(train="lit-align/sums-prompts", tokenizer=tokenizer, shuffle=False)
    module.setup("fit")
    assert (module.report["train"]["rows_kept"], module.report["val"]["rows_kept"]) == (3000, 400)
    batch = next(iter(module.val_dataloader()))
    assert batch.records[0]["answer"] == 6
    assert batch.records[0]["prompt"][0]["content"] == "Add 3 and 3."
    text = tokenizer.apply_chat_template(
        batch.records[0]["prompt"], tokenize=False, add_generation_prompt=True
    )
    assert prompts_of(batch, tokenizer)[0] == text


def test_predict_takes_the_held_out_prompts(plain):
    module = PromptDataModule(train=ROWS, val=ROWS[:3], tokenizer=plain)
    module.setup("predict")
    assert [b.rows for b in module.predict_dataloader()] == [(0, 1, 2)]
    with pytest.raises(DataError, match="no rows to test with"):
        module.setup("test")
