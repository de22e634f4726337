"""What is done to scores, in its order."""

import pytest
import torch

from lit_align.algorithms.shaping import KLPenalty, ScoreShaper, ScoreShaping
from lit_align.functional.kl_control import AdaptiveKL, FixedKL

NAN = float("nan")


def alone(sums):
    return sums


def shaped(shaping, scores, finished=None):
    finished = torch.ones(len(scores), dtype=torch.bool) if finished is None else torch.tensor(finished)
    return ScoreShaper(shaping)(torch.tensor(scores), finished, alone)


def test_without_settings_scores_stay():
    assert shaped(ScoreShaping(), [1.0, -2.0]).tolist() == [1.0, -2.0]


def test_the_penalty_comes_before_the_clip():
    scores = shaped(ScoreShaping(missing_eos_penalty=1.0, clip=1.5), [3.0, 3.0, -1.0], [True, False, False])
    assert scores.tolist() == [1.5, 1.5, -1.5]


def test_scores_are_scaled_by_all_that_was_seen():
    """Deviation of 1 and 3 is sqrt(2); of 1, 3, 5, 7 it is sqrt(20 / 3)."""
    shaper = ScoreShaper(ScoreShaping("scale"))
    finished = torch.ones(2, dtype=torch.bool)
    first = shaper(torch.tensor([1.0, 3.0]), finished, alone)
    second = shaper(torch.tensor([5.0, 7.0]), finished, alone)
    torch.testing.assert_close(first, torch.tensor([1.0, 3.0]) / 2**0.5)
    torch.testing.assert_close(second, torch.tensor([5.0, 7.0]) / (20 / 3) ** 0.5)


def test_normalised_scores_lose_their_mean():
    torch.testing.assert_close(
        shaped(ScoreShaping("normalise"), [1.0, 3.0]), torch.tensor([-1.0, 1.0]) / 2**0.5
    )


def test_an_unscored_completion_is_in_no_moment():
    scores = shaped(ScoreShaping("normalise"), [1.0, NAN, 3.0])
    assert scores[1].isnan()
    torch.testing.assert_close(scores[[0, 2]], torch.tensor([-1.0, 1.0]) / 2**0.5)


def test_a_target_makes_the_coefficient_adaptive():
    assert KLPenalty(0.1).control() == FixedKL(0.1)
    assert KLPenalty(0.1, target=6.0).control() == AdaptiveKL(0.1, 6.0, 10_000)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: KLPenalty(0.1, "k4"), "k1, k2, k3, abs, full"),
        (lambda: KLPenalty(-0.1), "negative"),
        (lambda: KLPenalty(0.0, target=1.0), "start from 0"),
        (lambda: ScoreShaping("norm"), "none, scale or normalise"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
