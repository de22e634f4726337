import pytest

from lit_align.datamodules.naming import looks_like_path, split_name


@pytest.mark.parametrize(
    "name",
    ["a.jsonl", "a.jsonl.gz", "data/a.CSV", "./a", "../a", "~/a", "/a/b", "a\\b", "a/b/c/d", "a.jsonl:train"],
)
def test_paths(name):
    assert looks_like_path(name)


@pytest.mark.parametrize(
    "name", ["gsm8k", "openai/gsm8k", "openai/gsm8k/main", "openai/gsm8k/main:test[:5%]", "a/v1.5"]
)
def test_names(name):
    assert not looks_like_path(name)


def test_a_name_below_a_folder_that_exists_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert not looks_like_path("data/pairs")
    (tmp_path / "data").mkdir()
    assert looks_like_path("data/pairs")


def test_a_drive_is_no_split():
    assert split_name(r"C:\pairs") == (r"C:\pairs", None)
