"""Requests that no generator can serve are refused before any work is done."""

import pytest

from lit_align.rollouts.generator import check_positions, check_request
from lit_align.rollouts.native import NativeGenerator
from lit_align.rollouts.sampling import Sampling
from lit_align.rollouts.transformers_generator import TransformersGenerator
from lit_align.scoring.policy import Policy
from tests.scoring.architectures import FLAT, build


@pytest.mark.parametrize("kind", ["gpt2", "opt"])
@pytest.mark.parametrize("generator", [NativeGenerator(), TransformersGenerator()])
def test_the_last_position_is_used_and_no_further(kind, generator):
    """64 positions: after 60 tokens of a prompt four are read, and a fifth is chosen."""
    policy = Policy(build(kind, FLAT[kind]))
    request = {"completions": 1, "seeds": [1, 2]}
    prompts = [[5], [5 + i % 40 for i in range(60)]]
    sampling = Sampling(5, min_new_tokens=5)
    forest = generator.generate(policy, None, prompts, sampling=sampling, **request)
    assert forest.completion_lengths == (5, 5)
    with pytest.raises(ValueError, match=r"prompt 1 has 60 tokens and max_new_tokens is 6, but .* knows 64"):
        generator.generate(policy, None, prompts, sampling=Sampling(6), **request)


@pytest.mark.parametrize("kind", ["llama", "gpt_neox", "phi"])
def test_rotary_positions_have_no_end(kind):
    check_positions(build(kind, FLAT[kind]), [[5] * 60], Sampling(600))


def test_numbers_that_belong_together():
    check_request([[5], [6]], 2, [1, 2, 3, 4])
    with pytest.raises(ValueError, match="3 seeds for 2 prompts with 2 completions each"):
        check_request([[5], [6]], 2, [1, 2, 3])
    with pytest.raises(ValueError, match="completions is 0"):
        check_request([[5]], 0, [])
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        check_request([[5], []], 1, [1, 2])
