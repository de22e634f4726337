"""Sampling by hand-worked distributions, and against transformers' warpers."""

import pytest
import torch
from transformers import LogitsProcessorList
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from lit_align.rollouts import sampling
from lit_align.rollouts.sampling import (
    Sampling,
    choose,
    draw,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    length_limits,
    penalize_repetition,
    random_streams,
)

# Probabilities 1/2, 1/4, 1/8, 1/8, in an order that is not sorted.
LOGITS = torch.tensor([[0.125, 0.5, 0.125, 0.25]]).log()


def kept(logits):
    return torch.isfinite(logits)[0].tolist()


def test_top_k():
    assert kept(keep_top_k(LOGITS, 2)) == [False, True, False, True]
    assert kept(keep_top_k(LOGITS, 3)) == [True, True, True, True]  # the last two are equal
    assert keep_top_k(LOGITS, 0) is LOGITS


def test_top_p():
    """1/2 is enough for 0.5; 0.51 needs 1/4 more; 0.76 one of the eighths."""
    assert kept(keep_top_p(LOGITS, 0.49)) == [False, True, False, False]
    assert kept(keep_top_p(LOGITS, 0.51)) == [False, True, False, True]
    assert sum(kept(keep_top_p(LOGITS, 0.76))) == 3
    assert kept(keep_top_p(LOGITS, 1e-9)) == [False, True, False, False]


def test_min_p():
    """A quarter of 1/2 is 1/8."""
    assert kept(keep_min_p(LOGITS, 0.26)) == [False, True, False, True]
    assert kept(keep_min_p(LOGITS, 0.24)) == [True] * 4


def test_repetition_penalty():
    logits = torch.tensor([[2.0, -1.0, 2.0]])
    seen = torch.tensor([[True, True, False]])
    assert penalize_repetition(logits, seen, 2.0).tolist() == [[1.0, -2.0, 2.0]]


def test_the_cuts_are_those_of_transformers():
    torch.manual_seed(0)
    logits, ids = 3 * torch.randn(5, 40), torch.randint(0, 40, (5, 7))
    seen = torch.zeros(5, 40, dtype=torch.bool).scatter(1, ids, True)
    theirs = LogitsProcessorList(
        [
            RepetitionPenaltyLogitsProcessor(1.4),
            TopKLogitsWarper(20),
            TopPLogitsWarper(0.9),
            MinPLogitsWarper(0.05),
        ]
    )
    ours = keep_top_p(keep_top_k(penalize_repetition(logits, seen, 1.4), 20), 0.9)
    torch.testing.assert_close(keep_min_p(ours, 0.05), theirs(ids, logits.clone()))


def test_draw_inverts_the_distribution_function():
    """Up to 1/8 it is token 0, up to 5/8 token 1, up to 6/8 token 2, then token 3."""
    uniform = torch.tensor([0.0, 0.124, 0.126, 0.624, 0.626, 0.749, 0.751, 1 - 2**-24])
    assert draw(LOGITS.expand(8, 4), uniform).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_draw_never_takes_what_is_impossible():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]])
    uniform = torch.tensor([0.0, 0.5, 1 - 2**-24])
    assert draw(logits.expand(3, 5), uniform).tolist() == [1, 3, 3]


def test_frequencies():
    found = draw(LOGITS.expand(20_000, 4), random_streams([7], 20_000)[0])
    share = torch.bincount(found, minlength=4) / 20_000
    torch.testing.assert_close(share, LOGITS.exp()[0], rtol=0, atol=0.01)


def test_log_probs_know_temperature_but_no_cuts():
    """softmax(2 log p): squares over their sum, 16/22 for the token of 1/2."""
    sampling = Sampling(temperature=0.5, top_k=1)
    ids, logps = choose(LOGITS, torch.tensor([0.9]), sampling)
    assert ids.tolist() == [1]
    torch.testing.assert_close(logps.exp(), torch.tensor([16 / 22]))
    ids, logps = choose(LOGITS, torch.tensor([0.9]), Sampling(temperature=0))
    assert ids.tolist() == [1]
    torch.testing.assert_close(logps.exp(), torch.tensor([0.5]))


def test_forbidden_and_seen_tokens():
    only = torch.tensor([[True, True, False, True]])
    assert choose(LOGITS, torch.tensor([0.0]), Sampling(), forbidden=only)[0].tolist() == [2]
    sampling = Sampling(temperature=0, repetition_penalty=5.0)
    seen = torch.tensor([[False, True, False, False]])
    assert choose(LOGITS, torch.tensor([0.0]), sampling, seen=seen)[0].tolist() == [3]


def test_half_precision_logits_are_widened():
    assert choose(LOGITS.bfloat16(), torch.tensor([0.5]), Sampling())[1].dtype == torch.float32


def test_streams_depend_on_their_seed_alone():
    many = random_streams([3, 2**62 + 3, 4], 50)
    assert torch.equal(many[1], random_streams([2**62 + 3], 50)[0])
    assert torch.equal(many[0, :20], random_streams([3], 20)[0])
    assert not torch.equal(many[0], many[1])
    assert ((many >= 0) & (many < 1)).all()


def test_limits():
    """Between 3 and 6 there are four limits: a quarter of the numbers each."""
    uniform = torch.tensor([0.0, 0.24, 0.26, 0.76, 1 - 2**-24])
    assert length_limits(uniform, Sampling(6, shortest_limit=3)).tolist() == [3, 3, 4, 6, 6]
    assert length_limits(uniform, Sampling(6)).tolist() == [6] * 5


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"min_new_tokens": -1}, "min_new_tokens is -1"),
        ({"temperature": -1.0}, "temperature is -1"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_p": 0.0}, "top_p is 0"),
        ({"min_p": 1.5}, "min_p is 1.5"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0"),
        ({"shortest_limit": 65}, "shortest_limit is 65"),
        ({"shortest_limit": 4, "min_new_tokens": 5}, "may be cut off after 4"),
        ({"stop": "END"}, "stop is 'END'"),
        ({"stop": [""]}, "not empty"),
    ],
)
def test_options_out_of_range(options, expected):
    with pytest.raises(ValueError, match=expected):
        Sampling(**options)


def test_whole_numbers_sum_like_floats():
    """What a GPU sums: to 2^-40, the same in any order, and without a step back."""
    torch.manual_seed(0)
    probabilities = (4 * torch.randn(5, 3000)).softmax(-1)
    sums = sampling.whole_sums(probabilities)
    torch.testing.assert_close(sums, probabilities.double().cumsum(-1), rtol=0, atol=3000 * 2.0**-40)
    assert (sums.diff(dim=-1) >= 0).all()
    turned = sampling.whole_sums(probabilities.flip(-1))
    assert torch.equal(turned[:, -1], sums[:, -1])


def test_a_draw_from_whole_numbers(monkeypatch):
    monkeypatch.setattr(sampling, "running_sums", sampling.whole_sums)
    logits = torch.tensor([[0.0, -torch.inf, 1.0, -60.0, -torch.inf]]).expand(4, -1)
    uniform = torch.tensor([0.0, 0.2, 0.5, 1 - 2.0**-24])
    assert sampling.draw(logits, uniform).tolist() == [0, 0, 2, 2]
    kept = sampling.keep_top_p(logits, 0.5).isfinite()
    assert kept.tolist() == [[False, False, True, False, False]] * 4
