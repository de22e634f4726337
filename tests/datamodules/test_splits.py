import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_align.datamodules.bad_rows import DataError
from lit_align.datamodules.splits import hold_out
from lit_align.datamodules.table import TokenTable
from lit_align.datamodules.tokenize import Row


def table(prompts):
    return TokenTable.from_rows([Row(i, list(p), [[i]], [[1.0]], {}) for i, p in enumerate(prompts)])


def test_the_fraction_is_held_out():
    kept, held = hold_out(table([[i] for i in range(50)]), 0.2, seed=0)
    assert len(held) == 10
    assert sorted(kept + held) == list(range(50))


@given(
    st.lists(st.integers(0, 9), min_size=4, max_size=60).filter(lambda p: len(set(p)) > 2), st.integers(0, 9)
)
def test_rows_of_a_prompt_stay_together(prompts, seed):
    kept, held = hold_out(table([[p] for p in prompts]), 0.4, seed)
    alone = {prompts[i] for i in kept} & {prompts[i] for i in held}
    # Only where no prompt is rare enough to be held out as a whole are they parted.
    rarest = min(prompts.count(p) for p in prompts)
    assert not alone or rarest > max(1, round(0.4 * len(prompts)))
    assert kept
    assert held


def test_the_choice_follows_content_not_order():
    prompts = [[i] for i in range(40)]
    _, held = hold_out(table(prompts), 0.25, seed=3)
    _, backwards = hold_out(table(prompts[::-1]), 0.25, seed=3)
    assert {39 - i for i in backwards} == set(held)
    assert hold_out(table(prompts), 0.25, seed=4)[1] != held


def test_one_prompt_for_all_is_parted_by_completion():
    kept, held = hold_out(table([[7]] * 10), 0.2, seed=0)
    assert (len(kept), len(held)) == (8, 2)


def test_equal_rows_leave_no_split():
    same = TokenTable.from_rows([Row(i, [1], [[2]], [[1.0]], {}) for i in range(5)])
    with pytest.raises(DataError, match="give val a source of its own"):
        hold_out(same, 0.2, seed=0)
