"""Advantage estimators by name."""

import pytest
import torch

from lit_align.functional import advantages as module
from lit_align.functional.advantages import (
    ADVANTAGE_ESTIMATORS,
    AdvantageEstimator,
    Experience,
    advantage_estimator,
    register,
)
from lit_align.functional.gae import gae

TOKENS = Experience(
    token_rewards=torch.tensor([0.0, 1.0, 3.0]),
    values=torch.tensor([0.5, 0.25, 1.0]),
    mask=torch.ones(3),
    sequence=torch.tensor([0, 0, 1]),
    completions=2,
)
COMPLETIONS = Experience(
    rewards=torch.tensor([1.0, 3.0, 5.0, 5.0]),
    reward_table=torch.tensor([[1.0], [3.0], [5.0], [5.0]]),
    reward_weights=torch.ones(1),
    group=torch.tensor([0, 0, 1, 1]),
    groups=2,
)


def test_each_has_a_shape_that_is_known_beforehand():
    for name, estimator in ADVANTAGE_ESTIMATORS.items():
        found = estimator(TOKENS if estimator.per_token else COMPLETIONS)
        assert found.shape == ((3,) if estimator.per_token else (4,)), name


def test_gae_is_the_function():
    found = advantage_estimator("gae")(TOKENS, gamma=0.9, gae_lambda=0.5)
    expected = gae(
        TOKENS.token_rewards, TOKENS.values, TOKENS.mask, TOKENS.sequence, gamma=0.9, gae_lambda=0.5
    )
    assert torch.equal(found, expected.advantages)
    assert advantage_estimator("gae").needs_values
    assert not advantage_estimator("group_normalised").needs_values


def test_reinforce_pp_by_hand():
    """Returns (1, 1, 3): mean 5/3, variance 4/3, and (-⅔, -⅔, 4/3)/√(4/3)."""
    found = advantage_estimator("reinforce_pp")(TOKENS)
    torch.testing.assert_close(found, torch.tensor([-0.57735, -0.57735, 1.1547]), rtol=1e-4, atol=0)


def test_what_is_not_there_is_named():
    with pytest.raises(ValueError, match="'group_normalised' needs rewards and group and groups"):
        advantage_estimator("group_normalised")(TOKENS)


def test_a_hyperparameter_that_nobody_takes():
    with pytest.raises(ValueError, match="'leave_one_out' does not use epsilon; its hyper-parameters: none"):
        advantage_estimator("leave_one_out")(COMPLETIONS, epsilon=1.0)


def test_your_own(monkeypatch):
    monkeypatch.setattr(module, "ADVANTAGE_ESTIMATORS", dict(ADVANTAGE_ESTIMATORS))

    def centred(rewards, *, scale=1.0):
        return (rewards - rewards.mean()) * scale

    register("centred", centred)
    assert advantage_estimator("centred")(COMPLETIONS, scale=2.0).tolist() == [-5.0, -1.0, 3.0, 3.0]
    assert torch.equal(advantage_estimator(centred)(COMPLETIONS), advantage_estimator("centred")(COMPLETIONS))
    with pytest.raises(ValueError, match="there is an advantage estimator 'centred' already"):
        register("centred", centred)


def test_unknown_names():
    with pytest.raises(ValueError, match="unknown advantage estimator 'gea'; did you mean 'gae'"):
        advantage_estimator("gea")
    with pytest.raises(ValueError, match="an advantage estimator cannot be given 'score'"):
        AdvantageEstimator.of(lambda score: score)
