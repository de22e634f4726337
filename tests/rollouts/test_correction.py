"""Settings of the sampler's correction."""

import pytest

from lit_align import GRPO
from lit_align.rollouts.correction import SamplerCorrection, correction_for
from lit_align.rollouts.native import NativeGenerator
from lit_align.rollouts.server import ServerGenerator


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "clip"}, "truncate, mask or none"),
        ({"level": "word"}, "token or sequence"),
        ({"cap": 0.0}, "must be positive"),
    ],
)
def test_settings_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        SamplerCorrection(**arguments)


def test_a_server_is_corrected_unless_that_is_switched_off():
    server = ServerGenerator("http://localhost:9", "base")
    assert correction_for(server, None) == SamplerCorrection("mask", "sequence", 3.0)
    assert correction_for(server, {"kind": "truncate", "cap": 2.0}) == SamplerCorrection("truncate", cap=2.0)
    assert correction_for(server, {"kind": "none"}) is None
    assert correction_for(server, SamplerCorrection("none")) is None
    assert correction_for(NativeGenerator(), None) is None


def test_an_algorithm_with_a_server_can_do_without():
    server = ServerGenerator("http://localhost:9", "base")
    arguments = {"policy": "lit-align/tiny", "rewards": "numeric_answer", "generator": server}
    assert GRPO(**arguments).correction == SamplerCorrection()
    assert GRPO(**arguments, correction={"kind": "none"}).correction is None
