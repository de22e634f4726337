import gzip
import json
import subprocess
import sys

import pytest

from lit_align import shipped

DATA_SETS = [name for name in shipped.names() if name != "lit-align/tiny"]


def rows(name):
    with gzip.open(shipped.find(name), "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def roles(messages):
    return [message["role"] for message in messages]


@pytest.mark.parametrize("name", list(shipped.names()))
def test_every_name_is_found(name):
    assert shipped.find(name).exists()


@pytest.mark.parametrize("name", DATA_SETS)
def test_a_data_set_alone_is_its_train_split(name):
    assert shipped.find(name) == shipped.find(f"{name}:train")
    assert shipped.find(name) != shipped.find(f"{name}:validation")


@pytest.mark.parametrize("name", ["gpt2", "meta-llama/Llama-3.2-1B", "./lit-align/tiny", "lit-align", ""])
def test_other_names_are_somebody_elses(name):
    assert shipped.find(name) is None


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("lit-align/tinny", "did you mean 'lit-align/tiny'"),
        ("lit-align/manners-pair", "did you mean 'lit-align/manners-pairs'"),
        ("lit-align/", "It has: lit-align/tiny"),
        ("lit-align/manners-pairs:valid", "did you mean 'lit-align/manners-pairs:validation'"),
        ("lit-align/manners-pairs:", "has no split ''"),
        ("lit-align/tiny:train", "a model has no splits"),
    ],
)
def test_a_name_of_ours_that_does_not_exist_is_an_error_with_the_nearest(name, hint):
    with pytest.raises(ValueError, match="lit-align") as error:
        shipped.find(name)
    assert hint in str(error.value)


def test_names_is_a_copy():
    shipped.names().clear()
    assert shipped.names()


def test_importing_the_names_needs_only_the_standard_library():
    heavy = "{'torch', 'transformers', 'lightning', 'numpy', 'datasets', 'peft'}"
    code = (
        f"import sys, lit_align.shipped, lit_align.shipped.tasks; print(sorted({heavy} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_everything_together_is_smaller_than_four_megabytes():
    model = sum(file.stat().st_size for file in shipped.find("lit-align/tiny").iterdir())
    data = sum(shipped.find(f"{n}:{split}").stat().st_size for n in DATA_SETS for split in shipped.SPLITS)
    assert model + data < 4_000_000


@pytest.mark.parametrize("name", DATA_SETS)
def test_splits_have_a_few_thousand_and_a_few_hundred_rows_and_share_none(name):
    train, validation = rows(name), rows(f"{name}:validation")
    assert len(train) >= 3000
    assert len(validation) >= 400
    questions = [
        {(row.get("messages") or row["prompt"])[0]["content"] for row in side} for side in (train, validation)
    ]
    assert len(questions[0]) == len(train)
    assert not questions[0] & questions[1]


@pytest.mark.parametrize("split", shipped.SPLITS)
def test_columns(split):
    for row in rows(f"lit-align/manners-pairs:{split}"):
        assert list(row) == ["prompt", "chosen", "rejected"]
        assert roles(row["prompt"]) == ["user"]
        assert roles(row["chosen"]) == roles(row["rejected"]) == ["assistant"]
    for row in rows(f"lit-align/manners-unpaired:{split}"):
        assert list(row) == ["prompt", "completion", "label"]
        assert roles(row["prompt"] + row["completion"]) == ["user", "assistant"]
    for row in rows(f"lit-align/manners-sft:{split}"):
        assert roles(row["messages"]) in (["user", "assistant"], ["user", "assistant"] * 2)
    for name, column in (("manners", "advice"), ("sums", "answer"), ("stories", "answer")):
        for row in rows(f"lit-align/{name}-prompts:{split}"):
            assert list(row) == ["prompt", column]
            assert roles(row["prompt"]) == ["user"]


@pytest.mark.parametrize("split", shipped.SPLITS)
def test_the_published_rules_agree_with_every_row(split):
    from lit_align.shipped.tasks import is_correct, manner

    for row in rows(f"lit-align/manners-pairs:{split}"):
        assert manner(row["chosen"][0]["content"]) == "polite"
        assert manner(row["rejected"][0]["content"]) == "rude"
    for row in rows(f"lit-align/manners-unpaired:{split}"):
        assert manner(row["completion"][0]["content"]) == ("polite" if row["label"] else "rude")
    for row in rows(f"lit-align/manners-sft:{split}"):
        assert all(manner(m["content"]) == "polite" for m in row["messages"] if m["role"] == "assistant")
    for row in rows(f"lit-align/sums-sft:{split}"):
        assert is_correct(row["messages"][1]["content"], row["answer"])


@pytest.mark.parametrize("split", shipped.SPLITS)
def test_half_of_the_labels_are_true(split):
    labels = [row["label"] for row in rows(f"lit-align/manners-unpaired:{split}")]
    assert sum(labels) * 2 == len(labels)
