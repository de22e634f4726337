"""What a function asks for, by the names of its arguments."""

import pytest

from lit_align.functional.signatures import Signature, unknown

KNOWN = ("ratios", "advantages")


def good(ratios, advantages, *, needed, optional=1.0): ...


def test_inputs_and_hyperparameters():
    found = Signature.of(good, KNOWN, "policy loss")
    assert found.inputs == ("ratios", "advantages")
    assert found.hyperparameters == {"needed", "optional"}
    assert found.required == {"needed"}


def test_only_the_inputs_that_are_named():
    assert Signature.of(lambda advantages: advantages, KNOWN, "policy loss").inputs == ("advantages",)


@pytest.mark.parametrize("bad", [lambda rewards: 0, lambda *ratios: 0, lambda ratios, **advantages: 0])
def test_unknown_inputs_are_refused(bad):
    with pytest.raises(
        ValueError, match=r"a policy loss cannot be given '\w+'\. .* out of ratios, advantages; hyper"
    ):
        Signature.of(bad, KNOWN, "policy loss")


def test_the_article_is_right():
    with pytest.raises(ValueError, match="an advantage estimator cannot be given 'x'"):
        Signature.of(lambda x: 0, KNOWN, "advantage estimator")


def test_hyperparameters_are_checked():
    found = Signature.of(good, KNOWN, "policy loss")
    found.check({"needed": 1}, "policy loss", "good")
    with pytest.raises(ValueError, match="policy loss 'good' needs needed"):
        found.check({}, "policy loss", "good")
    with pytest.raises(ValueError, match="'good' does not use beta; its hyper-parameters: needed, optional"):
        found.check({"needed", "beta"}, "policy loss", "good")


def test_the_nearest_name():
    assert unknown("policy loss", "gpro", ["grpo", "ppo"]).startswith(
        "unknown policy loss 'gpro'; did you mean 'grpo'? There are grpo, ppo"
    )
    assert "did you mean" not in unknown("policy loss", "xyz", ["grpo"])
