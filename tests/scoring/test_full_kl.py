"""The whole divergence at each token, against plain softmaxes."""

import pytest
import torch

from lit_align.batches import Forest
from lit_align.scoring.attention import install
from lit_align.scoring.full_kl import full_kl
from lit_align.scoring.padded import scored_logits
from lit_align.scoring.references import FrozenCopy, NoReference


@pytest.mark.parametrize("layout", ["flat", "padded"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_it_is_the_sum_over_the_vocabulary(make_policy, nudge, pairs, layout, temperature):
    policy = make_policy().eval()
    reference = FrozenCopy()
    reference.attach(policy)
    nudge(policy, 0.05)
    for scorer in (policy, reference.frozen):
        assert layout == "padded" or install(scorer.model)
        scorer.layout = layout
    found = full_kl(policy, reference, pairs, temperature=temperature)
    with torch.no_grad():
        own, other = (
            torch.log_softmax(scored_logits(scorer.model, pairs)[0].double() / temperature, -1)
            for scorer in (policy, reference.frozen)
        )
    expected = (own.exp() * (own - other)).sum(-1)
    assert expected.max() > 1e-3
    scored = pairs.weights != 0
    torch.testing.assert_close(found[scored].double(), expected, rtol=1e-4, atol=1e-6)
    assert (found[~scored] == 0).all()


def test_a_policy_is_no_distance_from_itself(make_policy, pairs):
    policy = make_policy().eval()
    reference = FrozenCopy()
    reference.attach(policy)
    assert full_kl(policy, reference, pairs).abs().max() < 1e-5


def test_nothing_scored_is_nothing_to_compare(make_policy):
    policy = make_policy().eval()
    batch = Forest.from_lists([[1]], [[[]]])
    assert full_kl(policy, NoReference(), batch).tolist() == []


def test_a_reference_without_weights_is_refused(make_policy, pairs):
    policy = make_policy().eval()
    reference = NoReference()
    reference.attach(policy)
    with pytest.raises(ValueError, match="no weights"):
        full_kl(policy, reference, pairs)
