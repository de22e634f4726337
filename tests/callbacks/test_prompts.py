"""Rows of callbacks: reading, encoding, sampling, and batches of others."""

import json
from pathlib import Path

import pytest
import torch

from lit_align import Forest
from lit_align.callbacks.prompts import encode_rows, forest_of, read_rows

TURNS = [{"role": "user", "content": "Hello"}]


def test_reading(tmp_path: Path) -> None:
    assert read_rows(["Hello", TURNS], "X") == [("Hello", None), (TURNS, None)]
    assert read_rows([{"prompt": TURNS, "completion": "Hi"}], "X") == [(TURNS, "Hi")]
    (tmp_path / "a.txt").write_text("One\n\nTwo\n")
    assert read_rows(str(tmp_path / "a.txt"), "X") == [("One", None), ("Two", None)]
    (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": "One", "completion": "1"}) + "\n")
    assert read_rows(tmp_path / "a.jsonl", "X") == [("One", "1")]


def test_what_is_no_row_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="X: no prompts"):
        read_rows([], "X")
    with pytest.raises(ValueError, match="X: row 2 is a int"):
        read_rows(["a", 3], "X")
    with pytest.raises(ValueError, match="row 1 has text; it needs prompt"):
        read_rows([{"text": "a"}], "X")
    with pytest.raises(ValueError, match="1 of 2 rows have no completion"):
        read_rows(["a", {"prompt": "b", "completion": "c"}], "X")
    (tmp_path / "a.jsonl").write_text("[1]\n")
    with pytest.raises(ValueError, match=r"a\.jsonl: line 1 is a list"):
        read_rows(tmp_path / "a.jsonl", "X")


def test_completions_end_with_eos(tokenizer) -> None:
    forest = encode_rows(tokenizer, read_rows([{"prompt": "Hello", "completion": " you"}], "X"))
    assert forest.completion_ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(forest.completion_ids[:-1]) == " you"


def test_padded_batches(rows) -> None:
    batch = {key: torch.stack([row[key] for row in rows[:2]]) for key in rows[0]}
    forest = forest_of(batch, "X")
    assert forest.completion_lengths == (9, 5)
    assert forest.weights.tolist() == [0, 0, *[1] * 7, 0, 0, 1, 1, 1]
    assert torch.equal(forest.completion_ids[9:], rows[1]["input_ids"][:5])
    bare = forest_of({"input_ids": batch["input_ids"][:1]}, "X")
    assert bare.weights.tolist() == [0, *[1] * 8]  # nothing predicts the first token
    mine = Forest.from_lists([[1]], [[[2]]])
    assert forest_of(mine, "X") is mine
    with pytest.raises(ValueError, match=r"X reads a Forest.*this batch has chosen, rejected"):
        forest_of({"chosen": 1, "rejected": 2}, "X")
