import pytest

from lit_align.rewards.inputs import RewardError
from lit_align.rewards.resolve import SHIPPED, name_of, resolve
from lit_align.runtime import trust


@pytest.mark.parametrize("name", SHIPPED)
def test_every_short_name_is_a_function(name):
    assert resolve(name).__name__ == name


def test_a_dotted_path_and_a_callable():
    from lit_align.rewards.manners import polite

    assert resolve("lit_align.rewards.manners.polite") is resolve(polite) is polite


def test_a_class_stands_for_an_object():
    assert isinstance(resolve(_Judge), _Judge)


class _Judge:
    def __call__(self, completions):
        return [0.0 for _ in completions]


def test_names_that_lead_nowhere():
    with pytest.raises(RewardError, match=r"no reward function 'numeric'; did you mean 'numeric_answer'"):
        resolve("numeric")
    with pytest.raises(RewardError, match=r"'lit_align.rewards.nothing.x' cannot be imported"):
        resolve("lit_align.rewards.nothing.x")
    with pytest.raises(RewardError, match="is a float, not a function"):
        resolve("math.pi")


def test_only_what_is_trusted_is_imported(tmp_path, monkeypatch):
    (tmp_path / "strange_rewards.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with trust.restricted(), pytest.raises(trust.UntrustedImport, match="strange_rewards"):
        resolve("strange_rewards.brief")
    with trust.restricted(), pytest.raises(trust.UntrustedImport):
        resolve("os.system")


def test_names_in_metrics():
    from functools import partial

    assert name_of("a.b.brief") == "brief"
    assert name_of(partial(max)) == "max"
    assert name_of(_Judge()) == "_Judge"
