import pytest

from lit_align.datamodules import PreferenceDataModule
from lit_align.datamodules.bad_rows import BadRow, DataError

PAIR = {"prompt": "Answer:", "chosen": " yes", "rejected": " no"}
USER = {"role": "user", "content": "How are you?"}
FINE = {"role": "assistant", "content": "Fine."}
BAD = {"role": "assistant", "content": "No idea."}


def load(rows, tokenizer, **options):
    module = PreferenceDataModule(train=rows, tokenizer=tokenizer, shuffle=False, **options)
    module.setup("fit")
    return module


def batch(rows, tokenizer, **options):
    return next(iter(load(rows, tokenizer, **options).train_dataloader()))


def told(rows, tokenizer, **options):
    """For each completion: its prompt, itself, and the part that is learned."""
    return [
        (
            tokenizer.decode(p),
            tokenizer.decode(c),
            tokenizer.decode([t for t, x in zip(c, w, strict=True) if x]),
        )
        for p, c, w in batch(rows, tokenizer, **options).sequences()
    ]


def test_a_pair_is_one_prompt_with_two_completions_chosen_first(plain):
    b = batch([PAIR, PAIR], plain)
    assert (b.num_prompts, b.num_completions, b.parents) == (2, 4, (0, 0, 1, 1))
    assert told([PAIR], plain) == [
        ("Answer:", " yes<|end|>", " yes<|end|>"),
        ("Answer:", " no<|end|>", " no<|end|>"),
    ]


def test_an_implicit_prompt_of_text(plain):
    assert told([{"chosen": "Answer: yes", "rejected": "Answer: no"}], plain) == told([PAIR], plain)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [USER], "chosen": [FINE], "rejected": [BAD]},
        {"chosen": [USER, FINE], "rejected": [USER, BAD]},
        {"prompt": "How are you?", "chosen": [USER, FINE], "rejected": [USER, BAD]},
        {"prompt": "How are you?", "chosen": [FINE], "rejected": [BAD]},
        {"prompt": [USER], "chosen": "Fine.", "rejected": "No idea."},
        {"prompt": [USER], "chosen": [USER, FINE], "rejected": [USER, BAD]},
        {
            "prompt": [{"from": "human", "value": "How are you?"}],
            "chosen": {"from": "gpt", "value": "Fine."},
            "rejected": BAD,
        },
    ],
)
def test_conversations_in_all_their_forms(chat, row):
    prompt = "<|im_start|>user\nHow are you?<|im_end|>\n<|im_start|>assistant\n"
    assert told([row], chat) == [
        (prompt, "Fine.<|im_end|>", "Fine.<|im_end|>"),
        (prompt, "No idea.<|im_end|>", "No idea.<|im_end|>"),
    ]


def test_user_turns_within_a_completion_are_not_learned(chat):
    row = {"chosen": [USER, FINE, USER, FINE], "rejected": [USER, BAD, USER, FINE]}
    chosen, rejected = told([row], chat)
    assert chosen[0].count("<|im_start|>") == 2
    assert chosen[2] == "Fine.<|im_end|>Fine.<|im_end|>"
    assert rejected[2] == "No idea.<|im_end|>Fine.<|im_end|>"


def test_a_margin_becomes_a_column(plain):
    rows = [{**PAIR, "margin": 0.5}, {**PAIR, "margin": "2"}]
    assert batch(rows, plain).prompt_columns["margin"].tolist() == [0.5, 2.0]
    assert batch([PAIR], plain).prompt_columns == {}
    with pytest.raises(BadRow, match="row 1: column 'margin' is missing"):
        batch([rows[0], PAIR], plain)
    with pytest.raises(BadRow, match="row 1: column 'margin': expected a value, found null"):
        batch([rows[0], {**PAIR, "margin": None}], plain)


def test_rows_are_numbered_as_in_the_source(plain):
    same = {**PAIR, "rejected": " yes"}
    assert batch([same, PAIR, same, PAIR], plain).rows == (1, 3)
    assert batch([[same, PAIR], [PAIR]], plain).rows == (1, 2)


@pytest.mark.parametrize(
    ("row", "rule", "count"),
    [
        ({**PAIR, "rejected": " yes"}, "on_identical", "identical_pairs"),
        ({"chosen": "Answer: yes", "rejected": "Answer: yes"}, "on_identical", "identical_pairs"),
        ({**PAIR, "rejected": " "}, "on_empty", "empty_completions"),
        ({"chosen": "Answer: yes", "rejected": "Answer:"}, "on_empty", "empty_completions"),
    ],
)
def test_pairs_without_signal_have_a_rule_of_their_own(plain, row, rule, count):
    report = load([PAIR, row], plain).report["train"]
    assert (report["rows_read"], report["rows_kept"], report[count]) == (2, 1, 1)
    with pytest.raises(BadRow, match=rf"row 1: .*{rule}: drop or keep"):
        load([PAIR, row], plain, **{rule: "error"})


def test_an_empty_completion_can_be_kept_as_eos(plain):
    assert told([{**PAIR, "rejected": ""}], plain, on_empty="keep")[1] == ("Answer:", "<|end|>", "<|end|>")


def test_identical_pairs_can_be_kept(plain):
    first, second = told([{**PAIR, "rejected": " yes"}], plain, on_identical="keep")
    assert first == second


def test_an_empty_reply_in_a_conversation(chat):
    row = {"prompt": [USER], "chosen": [FINE], "rejected": [{"role": "assistant", "content": ""}]}
    with pytest.raises(DataError, match=r"no usable row among 1: \{'empty_completions': 1\}"):
        load([row], chat)


def test_truncation_is_counted_and_too_much_of_it_stops(plain):
    long = {"prompt": "Answer: " + "yes " * 40, "chosen": " yes", "rejected": " no"}
    with pytest.raises(DataError, match=r"1 of 2 rows \(50.0%\) have nothing left to learn"):
        load([PAIR, long], plain, max_length=12)
    report = load([PAIR, long], plain, max_length=12, allow_dropped=0.5).report["train"]
    assert (report["rows_kept"], report["lost_to_truncation"]) == (1, 1)
    report = load([PAIR, long], plain, max_length=12, max_prompt_length=8).report["train"]
    assert (report["rows_kept"], report["truncated_prompts"]) == (2, 1)


def test_missing_columns_name_the_nearest(plain):
    with pytest.raises(
        BadRow, match=r"'rejected' is missing; found 'chosen', 'reject'.*did you mean 'reject'"
    ):
        load([{"chosen": "a", "reject": "b"}], plain)


@pytest.mark.parametrize(
    "row", [{**PAIR, "chosen": 5}, {**PAIR, "prompt": None}, {**PAIR, "chosen": None}, "text"]
)
def test_bad_rows_are_counted(plain, row):
    with pytest.raises(BadRow, match="row 1"):
        load([PAIR, row], plain)
    assert load([PAIR, row], plain, on_bad_row="drop").report["train"]["bad_rows"] == 1


def test_padded_batches_hold_neighbours(plain):
    padded = batch([{**PAIR, "margin": 1.0}] * 2, plain, layout="padded")
    assert padded["input_ids"].shape[0] == 4
    assert padded["margin"].tolist() == [1.0, 1.0]
    assert padded["rows"].tolist() == [0, 0, 1, 1]


def test_real_pairs_need_no_preparation(shared, gpt2):
    module = PreferenceDataModule(
        train=str(shared / "hh_harmless_pairs.jsonl.gz"), tokenizer=gpt2, val_fraction=0.1
    )
    module.setup("fit")
    train, val = module.report["train"], module.report["val"]
    assert train["rows_read"] == 1800
    assert train["empty_completions"] == 4
    assert train["rows_kept"] + val["rows_kept"] == 1796
    assert val["rows_kept"] == 180
    source = _lines(shared / "hh_harmless_pairs.jsonl.gz")
    for b in module.val_dataloader():
        texts = [gpt2.decode(p + c) for p, c, _ in b.sequences()]
        for i, row in enumerate(b.rows):
            pair = source[row]
            assert texts[2 * i] == pair["chosen"] + gpt2.eos_token
            assert texts[2 * i + 1] == pair["rejected"] + gpt2.eos_token
        for prompt, completion, _ in b.sequences():
            # What generation would be given has the same tokens.
            assert gpt2(gpt2.decode(prompt))["input_ids"] == prompt
            assert completion.count(gpt2.eos_token_id) == 1


def _lines(path):
    from lit_align.datamodules.readers import read_rows

    return [row for _, row in read_rows(path)]
