import gzip
import json
from pathlib import Path

import pytest

from lit_align.datamodules.bad_rows import DataError
from lit_align.datamodules.sources import open_sources

ROWS = [{"text": "one"}, {"text": "two"}, {"text": "three"}]


def values(spec, **options):
    return [record.values for source, _ in open_sources(spec, **options) for record in source]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "train-0.jsonl").write_text(json.dumps(ROWS[0]))
    with gzip.open(tmp_path / "train-1.jsonl.gz", "wt") as file:
        file.write(json.dumps(ROWS[1]))
    (tmp_path / "validation.csv").write_text("text\nthree\n")
    (tmp_path / "README.md").write_text("not data")
    return tmp_path


def test_files_directories_and_lists(folder):
    assert values(str(folder / "train-1.jsonl.gz")) == ROWS[1:2]
    assert values(folder / "train-0.jsonl") == ROWS[:1]
    assert values(str(folder)) == ROWS
    assert values(f"{folder}:train") == ROWS[:2]
    assert values([str(folder / "train-0.jsonl"), str(folder / "validation.csv")]) == [ROWS[0], ROWS[2]]
    assert values(ROWS) == ROWS
    assert values(ROWS, limit=2) == ROWS[:2]


def test_where_says_file_row_and_line(folder):
    ((source, _),) = open_sources(str(folder))
    assert [r.where for r in source] == [
        f"{folder}/train-0.jsonl, row 0 (line 1)",
        f"{folder}/train-1.jsonl.gz, row 1 (line 1)",
        f"{folder}/validation.csv, row 2 (line 2)",
    ]
    ((rows, _),) = open_sources(ROWS)
    assert [r.where for r in rows][1] == "<list in memory>, row 1"


def test_a_mixture_has_weights(folder):
    opened = open_sources({str(folder / "train-0.jsonl"): 1, str(folder / "validation.csv"): 0.5})
    assert [weight for _, weight in opened] == [1.0, 0.5]


def test_datasets(tmp_path):
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_list(ROWS)
    assert values(data) == ROWS
    assert values([data, data]) == ROWS * 2
    data.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=data, test=data.select([0])).save_to_disk(tmp_path / "many")
    assert values(str(tmp_path / "one")) == ROWS
    assert values(f"{tmp_path}/many") == ROWS
    assert values(f"{tmp_path}/many:test") == ROWS[:1]
    with pytest.raises(DataError, match=r"no split 'tests' \(did you mean 'test'\?\); it has train, test"):
        values(f"{tmp_path}/many:tests")
    with pytest.raises(DataError, match="Of a DatasetDict, give one split"):
        values(datasets.DatasetDict(train=data))


def test_shipped_data():
    assert set(values("lit-align/manners-pairs:validation", limit=1)[0]) >= {"prompt", "chosen", "rejected"}
    with pytest.raises(DataError, match="did you mean 'lit-align/manners-pairs'"):
        values("lit-align/maners-pairs")
    with pytest.raises(DataError, match="is a model, not a data set"):
        values("lit-align/tiny")


def test_fingerprints_follow_content(folder, tmp_path):
    def mark(spec, **options):
        return [source.fingerprint() for source, _ in open_sources(spec, **options)]

    copy = tmp_path / "other.jsonl"
    copy.write_bytes((folder / "train-0.jsonl").read_bytes())
    assert mark(str(copy)) == mark(str(folder / "train-0.jsonl"))
    before = mark(str(copy))
    copy.write_text(json.dumps({"text": "ONE"}))
    assert mark(str(copy)) != before
    assert mark(ROWS) == mark([dict(row) for row in ROWS])
    assert mark(ROWS) != mark([*ROWS[:2], {"text": "drei"}])
    assert mark(ROWS, limit=2) != mark(ROWS)


@pytest.mark.parametrize("name", ["train-O.jsonl", "./train-O.jsonl"])
def test_a_mistyped_path_names_the_nearest_and_asks_nobody(folder, monkeypatch, name):
    monkeypatch.chdir(folder)
    with pytest.raises(DataError, match=r"no such file or directory .*did you mean .*train-0\.jsonl"):
        values(name)


def test_a_missing_folder_is_named(folder):
    with pytest.raises(DataError, match="no such directory"):
        values(str(folder / "nowhere" / "a.jsonl"))


def test_an_empty_folder(tmp_path):
    with pytest.raises(DataError, match="a directory without data files"):
        values(str(tmp_path))


def test_a_missing_split_of_a_folder(folder):
    with pytest.raises(DataError, match=r"no file begins with 'test'; it has train-0.jsonl"):
        values(f"{folder}:test")


def test_the_hub_out_of_reach_is_one_error(monkeypatch, tmp_path):
    datasets = pytest.importorskip("datasets")
    monkeypatch.chdir(tmp_path)
    Path("nobody.jsonl").write_text("{}")

    def refuse(*args, **options):
        raise ConnectionError("Couldn't reach 'nobody/pairs' on the Hub (OfflineModeIsEnabled)\nmore")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(
        DataError, match=r"'nobody/pairs' is no file or directory here.*ConnectionError"
    ) as error:
        values("nobody/pairs")
    assert "more" not in str(error.value)
    with pytest.raises(DataError, match=r"Files here with a name like it: nobody.jsonl"):
        values("nobody")


def test_the_hub_is_asked_for_configuration_and_split(monkeypatch):
    datasets = pytest.importorskip("datasets")
    asked = []

    def load(name, configuration, **options):
        asked.append((name, configuration, options))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert values("org/pairs") == ROWS
    assert values("org/pairs/main:test[:10%]", streaming=True) == ROWS
    assert asked == [
        ("org/pairs", None, {"split": "train", "streaming": False}),
        ("org/pairs", "main", {"split": "test[:10%]", "streaming": True}),
    ]


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ([], "empty list"),
        (5, "expected a name, a path, a data set, or a list of rows, found int 5"),
        (iter(ROWS), "make it a list"),
        ({"text": "one"}, "a mixture maps sources to positive weights; 'text' has str 'one'"),
        ({"a.jsonl": 0}, "positive weights"),
    ],
)
def test_what_is_no_source(spec, problem):
    with pytest.raises(DataError, match=problem):
        open_sources(spec)
