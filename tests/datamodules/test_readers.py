import gzip
import json

import pytest

from lit_align.datamodules.bad_rows import DataError
from lit_align.datamodules.readers import Unreadable, read_rows

ROWS = [{"prompt": "a, b", "completion": 'say "x"\nand y'}, {"prompt": "é", "completion": "z"}]


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        path = tmp_path / name
        data = content.encode() if isinstance(content, str) else content
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return path

    return write


@pytest.mark.parametrize("end", ["", ".gz"])
def test_jsonl(write, end):
    path = write(
        "rows.jsonl" + end, "\n".join(json.dumps(row) for row in ROWS[:1]) + "\n\n" + json.dumps(ROWS[1])
    )
    assert list(read_rows(path)) == [("line 1", ROWS[0]), ("line 3", ROWS[1])]


def test_json(write):
    assert [row for _, row in read_rows(write("rows.json", json.dumps(ROWS)))] == ROWS


@pytest.mark.parametrize("end", ["", ".gz"])
def test_csv_with_quotes_line_breaks_and_a_byte_order_mark(write, end):
    content = '\ufeffprompt,completion\n"a, b","say ""x""\nand y"\né,z\n'
    assert [row for _, row in read_rows(write("rows.csv" + end, content))] == ROWS


def test_tsv(write):
    assert [row for _, row in read_rows(write("rows.tsv", "a\tb\n1\t2\n"))] == [{"a": "1", "b": "2"}]


def test_a_csv_field_may_be_long(write):
    long = "x" * 200_000
    assert [row for _, row in read_rows(write("rows.csv", f"text\n{long}\n"))] == [{"text": long}]


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    assert [row for _, row in read_rows(path)] == ROWS


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.json", '{"a": 1}\n{"a": 2}\n', "a file with one JSON object a line is named .jsonl"),
        ("a.json", '{"a": 1}', "expected a list of rows, found dict"),
        ("a.jsnl", "", r"unknown suffix '.jsnl' .did you mean '.json"),
        ("a.parquet", "no", "not a Parquet file"),
        ("a.jsonl", b"\xff\xfe\x00", "cannot be read as UTF-8"),
    ],
)
def test_what_cannot_be_read_is_named(write, name, content, problem):
    with pytest.raises(DataError, match=problem):
        list(read_rows(write(name, content)))


def test_a_file_that_is_not_gzipped(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_text("{}")
    with pytest.raises(DataError, match=r"a.jsonl.gz: cannot be read"):
        list(read_rows(path))


def test_a_broken_line_is_one_bad_row(write):
    rows = list(read_rows(write("a.jsonl", '{"a": 1}\n{"a": \n{"a": 3}\n')))
    assert [place for place, _ in rows] == ["line 1", "line 2", "line 3"]
    assert rows[1][1] == Unreadable("not JSON (Expecting value, character 6): str '{\"a\":'")
