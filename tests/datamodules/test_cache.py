import copy
import json
from collections import Counter

import pytest

from lit_align.datamodules import SupervisedDataModule
from lit_align.datamodules.cache import TokenCache, cache_folder, tokenizer_digest
from lit_align.datamodules.table import TokenTable
from lit_align.datamodules.tokenize import Row

ROWS = [{"prompt": "Answer:", "completion": " yes"}, {"prompt": "Question:", "completion": " no"}]
TABLE = TokenTable.from_rows([Row(0, [1], [[2, 3]], [[1.0, 0.5]], {"margin": 1.0})])


def entries(folder):
    return sorted(folder.rglob("*.safetensors"))


def load(tokenizer, rows=ROWS, **options):
    module = SupervisedDataModule(train=rows, tokenizer=tokenizer, **options)
    module.setup("fit")
    return module


def test_what_was_saved_is_found(tmp_path):
    cache = TokenCache(tmp_path / "new" / "folder")
    assert cache.load("key") is None
    cache.save("key", TABLE, Counter(rows_read=1))
    table, report = TokenCache(tmp_path / "new" / "folder").load("key")
    assert table[0] == TABLE[0]
    assert report == {"rows_read": 1}
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == ["key.safetensors"]


def test_a_damaged_entry_is_made_again(tmp_path):
    cache = TokenCache(tmp_path)
    cache.save("key", TABLE, Counter())
    path = tmp_path / "key.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.warns(UserWarning, match=r"key.safetensors is damaged"):
        assert cache.load("key") is None


def test_a_folder_that_cannot_be_written_is_told_and_memory_serves(tmp_path):
    # A file where the folder should be: root may write anywhere else.
    (tmp_path / "file").write_text("")
    cache = TokenCache(tmp_path / "file" / "tokens")
    with pytest.warns(UserWarning, match="cannot be written"):
        cache.save("key", TABLE, Counter(rows_read=1))
    assert cache.load("key")[0] is TABLE


def test_the_environment_names_the_folder(own_cache, monkeypatch, tmp_path):
    assert cache_folder() == own_cache / "tokens"
    monkeypatch.delenv("LIT_ALIGN_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "lit-align" / "tokens"


def test_rows_are_tokenised_once(plain, own_cache, monkeypatch):
    first = load(plain)
    assert len(entries(own_cache)) == 1
    monkeypatch.setattr("lit_align.datamodules.tokenize.Encoder.rows", None)
    assert load(plain).report == first.report
    assert len(entries(own_cache)) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"rows": [ROWS[0], {"prompt": "Question:", "completion": " maybe"}]},
        {"rows": ROWS[::-1]},
        {"max_length": 5},
        {"completion_only": False},
        {"columns": {"prompt": "completion", "completion": "prompt"}},
        {"limit": 1},
        {"on_bad_row": "drop"},
    ],
)
def test_anything_that_shapes_the_tokens_makes_another_entry(plain, own_cache, change):
    load(plain)
    load(plain, **change)
    assert len(entries(own_cache)) == 2


def test_a_changed_file_is_read_again(plain, tmp_path, own_cache):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)))
    before = load(plain, str(path)).report
    path.write_text(path.read_text().replace("yes", "yes yes yes"))
    assert load(plain, str(path)).report != before


def test_the_digest_of_a_tokenizer_follows_what_it_does(plain):
    digest = tokenizer_digest(plain)
    plain("yes", padding="max_length", max_length=8, truncation=True)
    assert tokenizer_digest(plain) == digest
    for change in ({"eos_token": "<pad>"}, {"chat_template": "{{ messages }}"}):
        other = copy.deepcopy(plain)
        for name, value in change.items():
            setattr(other, name, value)
        assert tokenizer_digest(other) != digest
    other = copy.deepcopy(plain)
    other.add_tokens(["extra"])
    assert tokenizer_digest(other) != digest


def test_without_cache_nothing_is_written(plain, own_cache):
    load(plain, cache=False)
    assert not own_cache.exists()
