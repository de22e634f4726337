import pytest

from lit_align.rewards.inputs import RewardError
from lit_align.rewards.manners import polite
from lit_align.rollouts.reward_config import RewardConfig, configurations


def told(spec):
    return [(c.kind, c.shown_name, c.weight) for c in configurations(spec)]


@pytest.mark.parametrize(
    ("spec", "found"),
    [
        ("polite", [("function", "polite", 1.0)]),
        (polite, [("function", "polite", 1.0)]),
        ("my.package.brief", [("function", "brief", 1.0)]),
        ("runs/reward/0/model", [("model", "model", 1.0)]),
        ("org/name", [("model", "name", 1.0)]),
        (["polite", "org/name"], [("function", "polite", 1.0), ("model", "name", 1.0)]),
        ({"polite": 1, "a.brief": 0.5}, [("function", "polite", 1.0), ("function", "brief", 0.5)]),
        ({"function": "polite", "weight": 2.0}, [("function", "polite", 2.0)]),
        (
            [{"model": "org/name", "name": "judge"}, RewardConfig(function="polite")],
            [("model", "judge", 1.0), ("function", "polite", 1.0)],
        ),
        (RewardConfig(classifier="org/bert", options={"label": "positive"}), [("classifier", "bert", 1.0)]),
    ],
)
def test_every_form_is_a_list_of_configurations(spec, found):
    assert told(spec) == found


def test_a_directory_is_a_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "judge").mkdir()
    assert told("judge") == [("model", "judge", 1.0)]


@pytest.mark.parametrize(
    ("spec", "error"),
    [
        (None, "no rewards"),
        ([], "no rewards"),
        ({}, "no rewards"),
        (5, "not int"),
        ({"polite": "much"}, "'polite' has 'much'"),
        ({"weight": 1.0}, "exactly one of function, model, classifier, adapter; found none"),
        ({"function": "polite", "wieght": 1.0}, "did you mean 'weight'"),
        ({"function": "polite", "model": "a/b"}, "found function and model"),
        ('{"functon": "polite"}', "did you mean 'function'"),
        ("{oops", "neither a name nor a mapping"),
        (["polite", "polite"], "two rewards are called 'polite'"),
        ({"function": "polite", "batch_size": 0}, "batch_size is 0"),
    ],
)
def test_what_is_no_reward(spec, error):
    with pytest.raises(ValueError, match=error):
        configurations(spec)


def test_isolation_needs_a_path():
    with pytest.raises(RewardError, match="by its dotted path"):
        RewardConfig(function=polite, isolate=True)
