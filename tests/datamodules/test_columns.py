import pytest

from lit_align.datamodules.bad_rows import BadRow, DataError
from lit_align.datamodules.columns import (
    check_mapping,
    choose_format,
    messages,
    number,
    present,
    rename,
    structure,
    text,
)
from lit_align.datamodules.sources import Record

FORMATS = (("messages",), ("prompt", "completion"), ("text",))


def record(**values):
    return Record(3, "pairs.jsonl, row 3 (line 4)", values)


def test_columns_are_renamed_and_others_kept():
    row = rename(record(question="q", answer="a", id=1), {"prompt": "question", "completion": "answer"})
    assert row.values == {"prompt": "q", "completion": "a", "id": 1}


def test_a_mapped_column_hides_one_of_that_name():
    row = rename(record(prompt="old", question="new"), {"prompt": "question"})
    assert row.values == {"prompt": "new"}


def test_columns_can_be_swapped():
    row = rename(record(chosen="a", rejected="b"), {"chosen": "rejected", "rejected": "chosen"})
    assert row.values == {"chosen": "b", "rejected": "a"}


@pytest.mark.parametrize(
    ("found", "parts"),
    [
        (
            {"promt": "a", "completion": "b"},
            ["'prompt' is missing", "'promt', 'completion'", "did you mean 'promt'?"],
        ),
        (
            {"txt": "a"},
            ["'text' is missing", "did you mean 'txt'?", "messages or prompt + completion or text"],
        ),
        ({"message": []}, ["'messages' is missing", "did you mean 'message'?"]),
        ({}, ["found no columns"]),
    ],
)
def test_a_missing_column_is_named_with_the_nearest(found, parts):
    with pytest.raises(BadRow) as error:
        choose_format(record(**found), FORMATS)
    for part in ["pairs.jsonl, row 3 (line 4)", *parts]:
        assert part in str(error.value)


def test_a_wrong_mapping_names_the_nearest():
    with pytest.raises(
        BadRow, match=r"no column 'questoin' \(did you mean 'question'\?\); the row has question"
    ):
        rename(record(question="q"), {"prompt": "questoin"})
    with pytest.raises(
        DataError, match=r"'promt' is no column of this DataModule \(did you mean 'prompt'\?\)"
    ):
        check_mapping({"promt": "question"}, ["prompt", "completion"])


@pytest.mark.parametrize("value", ["a string", 5, None, ["a"]])
def test_a_row_that_is_no_mapping(value):
    with pytest.raises(BadRow, match="expected a row of named columns, found"):
        rename(Record(0, "x", value), {})


@pytest.mark.parametrize(
    ("read", "value", "problem"),
    [
        (text, None, "column 'c': expected a value, found null"),
        (text, 5, "column 'c': expected a string, found int 5"),
        (text, ["a"], r"column 'c': expected a string, found list \['a'\]"),
        (number, "much", "column 'c': expected a finite number, found str 'much'"),
        (number, True, "expected a finite number, found bool True"),
        (number, float("nan"), "expected a finite number, found float nan"),
        (number, [1], "expected a finite number, found list"),
        (messages, "Hi", "column 'c': expected a list of messages, found str 'Hi'"),
        (messages, [], "at least one message, found an empty list"),
        (messages, ["Hi"], r"column c\[0\]: expected a message \(role, content\), found str 'Hi'"),
        (messages, [{"rol": "user", "content": "x"}], r"c\[0\]: no 'role'; .*did you mean 'rol'"),
        (messages, [{"role": "asistant", "content": "x"}], r"c\[0\].role: .*did you mean 'assistant'"),
        (messages, [{"role": "user", "content": None}], r"c\[0\].content: expected a string, found null"),
        (messages, [{"role": "user", "contents": "x"}], r"c\[0\].content: .*did you mean 'contents'"),
        (messages, [{"role": "user", "content": 7}], r"c\[0\].content: expected a string, found int 7"),
        (messages, [{"role": "user", "content": [{"type": "image"}]}], "expected text parts, found dict"),
        (messages, [{"from": "humann", "value": "x"}], r"c\[0\].from: .*did you mean 'human'"),
        (messages, [{"from": "human"}], r"c\[0\].content: expected a string, found none"),
    ],
)
def test_a_wrong_value_is_named(read, value, problem):
    with pytest.raises(BadRow, match=problem) as error:
        read(record(c=value), "c")
    assert "pairs.jsonl, row 3 (line 4): column" in str(error.value)


def test_an_absent_column_names_the_nearest():
    with pytest.raises(BadRow, match=r"'margin' is missing; found 'margins' \(did you mean 'margins'\?\)"):
        present(record(margins=1), "margin")


def test_numbers_of_csv_files():
    assert number(record(c="0.5"), "c") == 0.5


def test_sharegpt_becomes_messages():
    talk = [
        {"from": "system", "value": "Be kind."},
        {"from": "human", "value": "Hi"},
        {"from": "gpt", "value": "Hello", "weight": 0},
        {"from": "observation", "value": "42"},
    ]
    assert messages(record(c=talk), "c") == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello", "weight": 0},
        {"role": "tool", "content": "42"},
    ]


def test_nulls_of_arrow_structures_are_left_out():
    talk = [{"role": "assistant", "content": None, "tool_calls": [{"name": "f", "id": None}], "weight": None}]
    assert messages(record(c=talk), "c") == [
        {"role": "assistant", "content": "", "tool_calls": [{"name": "f"}]}
    ]


def test_content_in_parts_is_joined():
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    assert messages(record(c=[{"role": "user", "content": parts}]), "c")[0]["content"] == "one two"


def test_structures_may_be_json():
    assert structure(record(c='[{"name": "f"}]'), "c", list) == [{"name": "f"}]
    assert structure(record(c={"thinking": False, "x": None}), "c", dict) == {"thinking": False}
    assert structure(record(), "c", dict) is None
    with pytest.raises(BadRow, match="expected a dict or its JSON, found str 'thinking'"):
        structure(record(c="thinking"), "c", dict)
    with pytest.raises(BadRow, match="expected a list, found dict"):
        structure(record(c={}), "c", list)
