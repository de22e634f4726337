import gzip
import json
from pathlib import Path

import pytest

from lit_align.rewards.answers import exact_match, final_number, numeric_answer


def test_exact_match_ignores_space_and_case():
    assert exact_match(["  New   York\n", "new york", "York"], ["New York"] * 3) == [1.0, 1.0, 0.0]
    assert exact_match(["new york", "7"], ["New York", 7], ignore_case=False) == [0.0, 1.0]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("27 + 45 = 72.", 72),
        ("It is 1,072,000 in all", 1072000),
        ("So x = -5", -5),
        ("-5", -5),
        ("−5", -5),
        ("12-7=5", 5),
        ("7-5", 5),
        ("costs $3.50.", 3.5),
        ("3.50", 3.5),
        ("about 1.2e3", 1200),
        ("9.", 9),
        ("First 5, then\n#### 72", 72),
        ("#### 72\nThat was 5 steps.", 72),
        ("#### 1 or rather #### 2", 2),
        (r"\boxed{42} and 7", 42),
        (r"\boxed{1} no, \boxed{x = 2}", 2),
        ("abc7", None),
        ("no number", None),
        ("", None),
        (r"\boxed{x}", None),
        ("####", None),
    ],
)
def test_the_final_number(text, number):
    assert final_number(text) == number


def test_numeric_answers_of_every_kind():
    texts = ["72", "72.0", "It is 71", "none"]
    assert numeric_answer(texts, [72, "72", "#### 72", 72.0]) == [1.0, 1.0, 0.0, 0.0]


def test_an_answer_that_is_no_number_has_no_reward():
    assert numeric_answer(["72", "x"], ["x", None]) == [None, None]


def test_tolerance_is_relative_above_one_and_absolute_below():
    assert numeric_answer(["1000.5", "0.0005"], [1000, 0], tolerance=1e-3) == [1.0, 1.0]
    assert numeric_answer(["1000.5", "0.0005"], [1000, 0]) == [0.0, 0.0]


def test_the_shipped_sums_answer_themselves():
    from lit_align.datamodules.readers import read_rows
    from lit_align.shipped import find

    rows = [row for _, row in read_rows(find("lit-align/sums-sft:validation"))]
    said = [row["messages"][-1]["content"] for row in rows]
    assert numeric_answer(said, [row["answer"] for row in rows]) == [1.0] * len(rows)


def test_the_answers_of_gsm8k_are_read():
    path = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "gsm8k_train.jsonl.gz"
    if not path.is_file():
        pytest.skip("the folder of real data is not beside this checkout")
    answers = [json.loads(line)["answer"] for line in gzip.decompress(path.read_bytes()).splitlines()]
    assert numeric_answer(answers, answers) == [1.0] * len(answers)
    # The number behind the mark, not one of the calculation.
    bare = [answer.rpartition("#### ")[2] for answer in answers]
    assert numeric_answer([f"So it is {number}." for number in bare], answers) == [1.0] * len(answers)
    assert sum(numeric_answer(bare, answers[1:] + answers[:1])) < 0.1 * len(answers)
