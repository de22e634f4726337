"""Settings of the sampler's correction."""

import pytest

from lit_align.rollouts.correction import SamplerCorrection


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "clip"}, "truncate or mask"),
        ({"level": "word"}, "token or sequence"),
        ({"cap": 0.0}, "must be positive"),
    ],
)
def test_settings_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        SamplerCorrection(**arguments)
