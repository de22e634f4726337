"""The reference that shares its first layers with the policy."""

import pytest
import torch

from lit_align.scoring.references import SharedLayers, build_reference


def test_it_stays_where_the_policy_began(make_policy, pairs, nudge, present):
    policy = make_policy()
    start = present(policy, pairs)
    reference = SharedLayers(1)
    reference.attach(policy)
    assert torch.equal(reference.score(pairs), start)
    digest = reference.digest()
    nudge(policy)
    assert (present(policy, pairs) - start).abs().max() > 0.05
    assert torch.equal(reference.score(pairs), start)
    assert reference.digest() == digest


def test_it_owns_only_what_it_copied(make_policy):
    policy = make_policy()
    reference = SharedLayers(1)
    reference.attach(policy)
    both = torch.nn.ModuleList([policy, reference])
    extra = sum(p.numel() for p in both.parameters()) - sum(p.numel() for p in policy.parameters())
    model = policy.model
    copied = [model.model.layers[1], model.model.norm, model.lm_head]
    assert extra == sum(p.numel() for module in copied for p in module.parameters())


def test_it_is_plain_data(make_policy):
    spec = SharedLayers(2, "model.layers.{layer}").spec()
    assert spec["class_path"] == "lit_align.scoring.references.SharedLayers"
    again = build_reference(spec)
    assert (again.num_shared_layers, again.pattern) == (2, "model.layers.{layer}")


def test_before_attaching_it_says_so(pairs):
    with pytest.raises(RuntimeError, match="call attach"):
        SharedLayers(1).score(pairs)
