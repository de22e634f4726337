import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_align.datamodules.collate import PaddedCollator, collate
from lit_align.datamodules.table import TokenTable
from lit_align.datamodules.tokenize import Row

ids = st.integers(0, 9)


@st.composite
def some_row(draw, completions):
    said = [draw(st.lists(ids, min_size=1, max_size=6)) for _ in range(completions)]
    weights = [
        draw(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=len(c), max_size=len(c))) for c in said
    ]
    return Row(
        draw(st.integers(0, 999)),
        draw(st.lists(ids, max_size=6)),
        said,
        weights,
        {"margin": draw(st.integers(0, 3)) / 2},
    )


rows = st.integers(1, 3).flatmap(lambda c: st.lists(some_row(c), min_size=1, max_size=6))


@given(rows)
def test_a_batch_holds_its_rows_in_order(some):
    batch = collate(some)
    assert batch.rows == tuple(row.row for row in some)
    assert batch.prompt_columns["margin"].tolist() == [row.columns["margin"] for row in some]
    assert batch.num_tokens == sum(row.num_tokens for row in some)
    told = [(row.prompt, c, w) for row in some for c, w in zip(row.completions, row.weights, strict=True)]
    for (prompt, completion, weights), expected in zip(batch.sequences(), told, strict=True):
        assert (prompt, completion) == expected[:2]
        # The first token of a completion without a prompt is told from nothing.
        assert weights == (expected[2] if prompt else [0.0, *expected[2][1:]])


@given(rows, st.sampled_from(["left", "right"]))
def test_ragged_and_padded_hold_the_same(some, side):
    # 3 is an ordinary token here too: what is padding is told by position alone.
    padded = PaddedCollator(pad_id=3, side=side)(some)
    ragged = list(collate(some).sequences())
    assert len(padded["input_ids"]) == len(ragged)
    for i, (prompt, completion, weights) in enumerate(ragged):
        there = padded["attention_mask"][i].bool()
        assert padded["input_ids"][i][there].tolist() == prompt + completion
        assert padded["weights"][i][there].tolist() == [0.0] * len(prompt) + weights
        assert not padded["weights"][i][~there].any()
        labels = [t if w else -100 for t, w in zip(completion, weights, strict=True)]
        assert padded["labels"][i][there].tolist() == [-100] * len(prompt) + labels
        assert (padded["labels"][i][~there] == -100).all()
    assert padded["rows"].tolist() == [row.row for row in some for _ in row.completions]


@given(rows)
def test_a_table_gives_its_rows_back(some):
    table = TokenTable.from_rows(some)
    assert [table[i] for i in range(len(table))] == some
    assert table.lengths.tolist() == [row.num_tokens for row in some]
    again = TokenTable.from_tensors(table.tensors())
    assert [again[i] for i in range(len(again))] == some


@given(rows, st.data())
def test_tables_are_joined_and_selected(some, data):
    tables = [TokenTable.from_rows([row]) for row in some]
    joined = TokenTable.concatenate(tables)
    assert [joined[i] for i in range(len(joined))] == some
    chosen = data.draw(st.lists(st.integers(0, len(some) - 1), min_size=1))
    selected = joined.select(chosen)
    assert [selected[i] for i in range(len(selected))] == [some[i] for i in chosen]


def test_offsets_are_wide_enough_for_large_tables():
    assert TokenTable.from_rows([Row(0, [1], [[2]], [[1.0]], {})]).completion_offsets.dtype == torch.int64
