import pytest

from lit_align.datamodules.bad_rows import BadRow, BadRows, nearest, shown


def test_error_raises_and_names_the_way_out():
    with pytest.raises(BadRow, match=r"a.csv, row 2: broken.*on_bad_row: drop or warn"):
        BadRows("error").handle(BadRow("a.csv, row 2", "broken"))


def test_drop_counts(recwarn):
    rule = BadRows("drop")
    rule.handle(BadRow("a.csv, row 2", "broken"))
    rule.handle(BadRow("a.csv, row 3", "broken"))
    assert rule.counts["bad_rows"] == 2
    assert not recwarn


def test_warn_warns_ten_times_and_counts_on(recwarn):
    rule = BadRows("warn")
    for i in range(12):
        rule.handle(BadRow(f"a.csv, row {i}", "broken"))
    assert rule.counts["bad_rows"] == 12
    assert len(recwarn) == 10
    assert "row left out: a.csv, row 0: broken" in str(recwarn[0].message)
    assert "only counted" in str(recwarn[9].message)


def test_long_values_are_cut():
    assert shown("x" * 100) == "str '" + "x" * 58 + "…"
    assert shown(None) == "null"


def test_far_names_are_not_proposed():
    assert nearest("prompt", ["zzz"]) == ""
