"""Coefficients that follow a goal."""

import math

import pytest

from lit_align.functional.kl_control import AdaptiveEntropy, AdaptiveKL, FixedKL


def test_adaptive_by_hand():
    """Target 6, KL 6.6: an error of 0.1; 1000 of 10000 samples: β grows by 1 %. KL 100 counts as 20 %."""
    control = AdaptiveKL(0.5, target=6.0, horizon=10_000)
    control.update(6.6, 1000)
    assert control.value == pytest.approx(0.505, rel=1e-12)
    control.update(100.0, 1000)
    assert control.value == pytest.approx(0.505 * 1.02, rel=1e-12)
    control.update(0.0, 1000)
    assert control.value == pytest.approx(0.505 * 1.02 * 0.98, rel=1e-12)


def test_on_target_nothing_moves():
    control = AdaptiveKL(0.3, target=4.0)
    control.update(4.0, 512)
    assert control.value == 0.3


@pytest.mark.parametrize("kl", [math.nan, math.inf])
def test_a_broken_measurement_is_an_error(kl):
    with pytest.raises(ValueError, match="AdaptiveKL: the measured KL is"):
        AdaptiveKL().update(kl, 8)
    with pytest.raises(ValueError, match="AdaptiveEntropy: the measured entropy is"):
        AdaptiveEntropy(1.0).update(kl)


@pytest.mark.parametrize("options", [{"target": 0.0}, {"horizon": -1}])
def test_target_and_horizon_are_positive(options):
    with pytest.raises(ValueError, match="target and horizon must be positive"):
        AdaptiveKL(**options)


def test_fixed_stays():
    control = FixedKL(0.05)
    control.update(100.0, 512)
    assert control.value == 0.05
    control.load_state_dict({"value": 3.0})  # a coefficient given now beats one of a checkpoint
    assert control.value == 0.05


def test_state_is_floats_and_comes_back():
    first = AdaptiveKL(0.2)
    first.update(9.0, 64)
    second = AdaptiveKL(0.9)
    second.load_state_dict(first.state_dict())
    assert second.value == first.value
    entropy = AdaptiveEntropy(1.0)
    entropy.update(0.5)
    again = AdaptiveEntropy(1.0)
    again.load_state_dict(entropy.state_dict())
    assert again == entropy
    for state in (first.state_dict(), entropy.state_dict(), FixedKL(0.1).state_dict()):
        assert all(type(value) is float for value in state.values())


def test_entropy_by_hand():
    """Target 1: too low twice, c = 0.2; then too high: c = 0.1 and no bonus; then low again: 0.2."""
    control = AdaptiveEntropy(1.0, step=0.1, highest=0.25)
    found = []
    for entropy in (0.5, 0.5, 2.0, 0.5, 0.5):
        control.update(entropy)
        found.append(round(control.value, 6))
    assert found == [0.1, 0.2, 0.0, 0.2, 0.25]


def test_the_entropy_coefficient_is_never_negative():
    control = AdaptiveEntropy(1.0)
    for _ in range(3):
        control.update(5.0)
    assert control.coefficient == 0.0
