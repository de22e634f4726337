import json

import pytest
from transformers import AutoTokenizer

from lit_align.datamodules import SupervisedDataModule
from lit_align.datamodules.bad_rows import BadRow, DataError

PAIR = {"prompt": "Answer:", "completion": " yes"}
TALK = [
    {"role": "user", "content": "How are you?"},
    {"role": "assistant", "content": "Fine."},
    {"role": "user", "content": "And now?"},
    {"role": "assistant", "content": "Still fine."},
]


def batch(rows, tokenizer, **options):
    module = SupervisedDataModule(train=rows, tokenizer=tokenizer, shuffle=False, **options)
    module.setup("fit")
    return next(iter(module.train_dataloader()))


def told(tokenizer, rows, **options):
    """For each row: its prompt, its completion, and the part that is learned."""
    return [
        (
            tokenizer.decode(p),
            tokenizer.decode(c),
            tokenizer.decode([t for t, x in zip(c, w, strict=True) if x]),
        )
        for p, c, w in batch(rows, tokenizer, **options).sequences()
    ]


def test_prompt_and_completion(plain):
    assert told(plain, [PAIR]) == [("Answer:", " yes<|end|>", " yes<|end|>")]


def test_language_modelling(plain):
    ((prompt, completion, learned),) = told(plain, [{"text": "Answer: yes"}])
    assert (prompt, completion) == ("", "Answer: yes<|end|>")
    assert completion.endswith(learned)
    assert len(plain(learned)["input_ids"]) == len(plain(completion)["input_ids"]) - 1


def test_the_prompt_can_be_learned_too(plain):
    (b,) = [batch([PAIR], plain, completion_only=False)]
    assert b.prompt_lengths == (0,)
    assert plain.decode(b.completion_ids) == "Answer: yes<|end|>"
    assert b.weights.tolist() == [0.0] + [1.0] * (len(b.weights) - 1)


def test_messages(chat):
    ((prompt, completion, learned),) = told(chat, [{"messages": TALK}])
    assert prompt == "<|im_start|>user\nHow are you?<|im_end|>\n<|im_start|>assistant\n"
    assert learned == "Fine.<|im_end|>Still fine.<|im_end|>"
    assert completion.endswith("And now?<|im_end|>\n<|im_start|>assistant\nStill fine.<|im_end|>")


def test_sharegpt(chat):
    names = {"user": "human", "assistant": "gpt"}
    talk = [{"from": names[m["role"]], "value": m["content"]} for m in TALK]
    assert told(chat, [{"conversations": talk}]) == told(chat, [{"messages": TALK}])


def test_prompt_and_completion_as_messages(chat):
    ((prompt, _, learned),) = told(chat, [{"prompt": TALK[:3], "completion": TALK[3:]}])
    assert prompt.endswith("And now?<|im_end|>\n<|im_start|>assistant\n")
    assert learned == "Still fine.<|im_end|>"
    assert told(chat, [{"prompt": "How are you?", "completion": TALK[1:2]}]) == told(
        chat, [{"prompt": TALK[:1], "completion": "Fine."}]
    )


def test_a_template_that_does_not_end_with_eos(chat):
    chat.eos_token = "<|end|>"
    ((_, _, learned),) = told(chat, [{"messages": TALK}])
    assert learned == "Fine.<|im_end|>Still fine.<|im_end|><|end|>"


def test_a_template_from_a_file(plain, tmp_path):
    path = tmp_path / "chat.jinja"
    path.write_text(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    ((_, _, learned),) = told(plain, [{"messages": TALK[:2]}], chat_template=str(path))
    assert learned == "Fine.\n<|end|>"
    with pytest.raises(DataError, match=r"'chat.jnja' is neither Jinja text nor a file"):
        batch([{"messages": TALK}], plain, chat_template="chat.jnja")


def test_tools_and_template_options_of_a_row(chat):
    chat.chat_template = "{{ tools[0].name if tools }} {{ mood }}\n" + chat.chat_template
    rows = [
        {"messages": TALK, "tools": json.dumps([{"name": "look"}]), "chat_template_kwargs": {"mood": "good"}}
    ]
    assert told(chat, rows)[0][0].startswith("look good\n")


def test_a_row_has_a_weight(plain):
    weights = batch([{**PAIR, "weight": 0.5}, {**PAIR, "weight": None}], plain).weights
    assert set(weights.tolist()) == {0.5, 1.0}
    with pytest.raises(BadRow, match="column 'weight': expected a number of at least 0, found -1"):
        batch([{**PAIR, "weight": -1}], plain)


def test_columns_are_mapped(plain):
    rows = [{"question": "Answer:", "answer": " yes"}]
    assert told(plain, rows, columns={"prompt": "question", "completion": "answer"}) == told(plain, [PAIR])
    with pytest.raises(DataError, match=r"'promt' is no column of this DataModule .did you mean 'prompt'"):
        SupervisedDataModule(columns={"promt": "question"})


def test_a_cut_completion_has_no_eos(plain):
    ids = plain("Answer: yes, it isn't.")["input_ids"]
    b = batch([{"prompt": "Answer:", "completion": " yes, it isn't."}], plain, max_length=len(ids) - 1)
    assert b.completion_ids.tolist()[-1] != plain.eos_token_id
    assert b.num_tokens == len(ids) - 1


def test_pad_as_eos_is_learned(plain):
    # Masks come from positions: an EOS that is also the pad token is learned all the same.
    plain.pad_token = plain.eos_token
    rows = [PAIR, {"prompt": "Answer:", "completion": " yes yes yes"}]
    padded = batch(rows, plain, layout="padded")
    labels = padded["labels"][0]
    assert labels[labels != -100].tolist()[-1] == plain.eos_token_id
    assert padded["attention_mask"].sum(1).tolist() == [
        len(p) + len(c) for p, c, _ in batch(rows, plain).sequences()
    ]


BROKEN = [
    ({"prompt": "Answer:"}, r"row 1: column 'completion' is missing"),
    ({"prompt": "Answer:", "completion": None}, r"row 1: column 'completion': expected a value, found null"),
    (
        {"prompt": "Answer:", "completion": "  "},
        r"row 1: column 'completion': expected text to learn, found '  '",
    ),
    ({"prompt": 3, "completion": "x"}, r"row 1: column 'prompt': expected a string, found int 3"),
]


@pytest.mark.parametrize(("row", "problem"), BROKEN)
def test_bad_rows_stop_or_are_counted(plain, row, problem):
    with pytest.raises(BadRow, match=problem):
        batch([PAIR, row], plain)
    module = SupervisedDataModule(train=[PAIR, row], tokenizer=plain, on_bad_row="drop")
    module.setup("fit")
    assert module.report["train"]["bad_rows"] == 1
    assert module.report["train"]["rows_kept"] == 1
    module = SupervisedDataModule(train=[PAIR, row], tokenizer=plain, on_bad_row="warn", cache=False)
    with pytest.warns(UserWarning, match="row left out: .*row 1: column"):
        module.setup("fit")


def test_a_broken_line_is_a_bad_row(plain, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(PAIR) + '\n{"prompt": "Answ\n' + json.dumps(PAIR))
    with pytest.raises(BadRow, match=r"rows.jsonl, row 1 \(line 2\): not JSON"):
        batch(str(path), plain)
    assert batch(str(path), plain, on_bad_row="drop").rows == (0, 2)


def test_no_row_left_is_an_error_before_the_first_step(plain):
    with pytest.raises(DataError, match=r"no usable row among 1: \{'bad_rows': 1\}"):
        batch([{"prompt": "Answer:", "completion": None}], plain, on_bad_row="drop")


def test_an_empty_prompt_is_language_modelling(plain):
    assert told(plain, [{"prompt": "", "completion": "yes no"}])[0][:2] == ("", "yes no<|end|>")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"truncation": "middle"}, "truncation must be one of keep_start, keep_end, not 'middle'"),
        ({"on_bad_row": "ignore"}, "on_bad_row must be one of"),
        ({"layout": "flat"}, "layout must be one of ragged, padded"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"max_length": 8, "max_prompt_length": 8}, "leaves no room for a completion"),
        ({"val_fraction": 1.5}, "val_fraction is a fraction"),
        ({"val_fraction": 0.1, "val": [PAIR]}, "val or val_fraction, not both"),
        ({"val_fraction": 0.1, "streaming": True}, "val_fraction needs all rows"),
        ({"drop_last": True, "batch_tokens": 9}, "drop_last belongs to a fixed batch_size"),
        ({"allow_dropped": 2}, "allow_dropped is a fraction"),
    ],
)
def test_settings_that_make_no_sense(options, problem):
    with pytest.raises(ValueError, match=problem):
        SupervisedDataModule(train=[PAIR], **options)


def test_gsm8k_by_column_mapping(shared, gpt2):
    module = SupervisedDataModule(
        train=str(shared / "gsm8k_train.jsonl.gz"),
        columns={"prompt": "question", "completion": "answer"},
        tokenizer=gpt2,
        limit=300,
    )
    module.setup("fit")
    assert module.report["train"]["rows_kept"] == 300
    for prompt, completion, weights in next(iter(module.train_dataloader())).sequences():
        assert "####" in gpt2.decode(completion)
        assert completion.count(gpt2.eos_token_id) == 1
        assert set(weights) == {1.0}
        assert gpt2.decode(prompt).endswith(("?", "."))


def test_movie_reviews_as_language_modelling(shared, gpt2):
    module = SupervisedDataModule(train=str(shared / "movie_reviews.jsonl.gz"), tokenizer=gpt2, limit=50)
    module.setup("fit")
    assert module.report["train"]["rows_kept"] == 50


def test_shipped_rows_with_the_shipped_tokenizer():
    from lit_align.shipped import find

    tokenizer = AutoTokenizer.from_pretrained(find("lit-align/tiny"))
    module = SupervisedDataModule(
        train="lit-align/manners-sft", val="lit-align/manners-sft:validation", tokenizer="lit-align/tiny"
    )
    module.setup("fit")
    for _, completion, weights in next(iter(module.train_dataloader())).sequences():
        assert completion[-1] == tokenizer.eos_token_id
        assert weights[-1] == 1.0
