"""References that begin as a copy: one stays where it was, one follows by the paper's rule."""

import copy

import pytest
import torch

from lit_align.scoring.adapters import adapter_tensors
from lit_align.scoring.references import EMA, FrozenCopy

LORA = pytest.mark.parametrize("lora", [{}, {"r": 4}, {"r": 4, "dora": True, "modules_to_save": ["lm_head"]}])


@LORA
def test_a_frozen_copy_is_of_the_weights_in_memory(make_policy, pairs, nudge, present, lora):
    policy = make_policy(**lora)
    nudge(policy)  # changed after it was built: a reference read from a file would be another model
    start = present(policy, pairs)
    reference = FrozenCopy()
    reference.attach(policy)
    assert torch.equal(reference.score(pairs), start)
    nudge(policy)
    assert (present(policy, pairs) - start).abs().max() > 0.05
    assert torch.equal(reference.score(pairs), start)


def test_under_adapters_only_the_adapter_is_copied(make_policy):
    policy = make_policy(r=4)
    reference = FrozenCopy()
    reference.attach(policy)
    assert not list(reference.parameters())
    assert policy.model.active_adapters == ["default"]
    mine, theirs = (adapter_tensors(policy.model, name) for name in (reference.adapter, "default"))
    assert mine.keys() == theirs.keys()
    assert len(mine) == 28
    assert not any(t.requires_grad for t in mine.values())
    assert all(t.requires_grad for t in theirs.values())
    assert {t.data_ptr() for t in mine.values()}.isdisjoint(t.data_ptr() for t in theirs.values())


def test_a_second_run_on_the_same_module_gets_a_copy_of_its_own(make_policy, pairs, nudge, present):
    policy = make_policy(r=4)
    first, second = FrozenCopy(), FrozenCopy()
    first.attach(policy)
    at_first = first.score(pairs)
    nudge(policy)
    second.attach(policy)
    assert torch.equal(second.score(pairs), present(policy, pairs))
    assert torch.equal(first.score(pairs), at_first)


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_ways_of_starting_that_change_the_base_are_copied_right(make_policy, pairs, nudge, present, start):
    policy = make_policy(r=4, extra={"init_lora_weights": start})
    expected = present(policy, pairs)
    reference = FrozenCopy()
    reference.attach(policy)
    assert torch.equal(present(policy, pairs), expected), "attaching must not change the policy"
    nudge(policy)
    torch.testing.assert_close(reference.score(pairs), expected)


def test_where_the_base_is_trained_too_the_whole_model_is_copied(make_policy, pairs, nudge, present):
    policy = make_policy(r=4)
    policy.model.get_base_model().lm_head.weight.requires_grad_(True)
    start = present(policy, pairs)
    reference = FrozenCopy()
    reference.attach(policy)
    nudge(policy)
    assert torch.equal(reference.score(pairs), start)


def test_a_copy_stays_in_eval_mode_and_is_not_trained(make_policy, pairs):
    owner = torch.nn.Module()
    owner.policy, owner.reference = make_policy(), FrozenCopy()
    owner.reference.attach(owner.policy)
    owner.train()
    assert owner.policy.model.training
    assert not any(m.training for m in owner.reference.modules())
    assert not any(p.requires_grad for p in owner.reference.parameters())
    assert torch.equal(owner.reference.score(pairs), owner.reference.score(pairs))


# -- EMA -------------------------------------------------------------------------------------------


def one_weight(policy, reference):
    """A policy weight and its counterpart in the reference."""
    if reference.adapter is None:
        name = "model.layers.0.mlp.up_proj.weight"
        return policy.model.get_parameter(name), reference.frozen.model.get_parameter(name)
    mine, theirs = (adapter_tensors(policy.model, name) for name in ("default", reference.adapter))
    key = next(key for key in mine if "lora_B" in key)
    return mine[key], theirs[key]


@pytest.mark.parametrize("lora", [{}, {"r": 4}])
def test_ema_by_hand(make_policy, lora):
    """alpha 0.6, every 2 steps, reference at 0, policy at 1, then 2.

    Step 1: nothing. Step 2: 0.4 * 0 + 0.6 * 1 = 0.6. Step 2 again (accumulation): nothing.
    Step 3: nothing. Step 4: 0.4 * 0.6 + 0.6 * 2 = 1.44.
    """
    policy = make_policy(**lora)
    reference = EMA(alpha=0.6, interval=2)
    reference.attach(policy)
    theirs, mine = one_weight(policy, reference)
    mine.data.zero_()
    seen = []
    for step, value in [(1, 1.0), (2, 1.0), (2, 1.0), (3, 2.0), (4, 2.0)]:
        theirs.data.fill_(value)
        reference.after_step(policy, step)
        assert mine.min() == mine.max()
        seen.append(round(mine.max().item(), 6))
    assert seen == [0, 0.6, 0.6, 0.6, 1.44]
    assert not mine.requires_grad


@LORA
def test_a_hard_update_makes_the_reference_the_policy(make_policy, pairs, nudge, present, lora):
    policy = make_policy(**lora)
    reference = EMA(alpha=1.0, interval=3)
    reference.attach(policy)
    start = present(policy, pairs)
    nudge(policy)
    reference.after_step(policy, 2)
    assert torch.equal(reference.score(pairs), start)
    reference.after_step(policy, 3)
    assert torch.equal(reference.score(pairs), present(policy, pairs))
    assert (reference.score(pairs) - start).abs().max() > 0.05


def test_an_average_in_bfloat16_is_rounded_once(make_policy):
    """0.999 * 1 + 0.001 * 1.0078125 would be rounded away in steps; 1 + 0.6 * 2^-7 rounds to 1 + 2^-7."""
    policy = make_policy()
    policy.to(torch.bfloat16)
    reference = EMA(alpha=0.6, interval=1)
    reference.attach(policy)
    theirs, mine = one_weight(policy, reference)
    mine.data.fill_(1.0)
    theirs.data.fill_(1.0078125)
    reference.after_step(policy, 1)
    assert mine.unique().tolist() == [1.0078125]
    assert mine.dtype == torch.bfloat16


@pytest.mark.parametrize("lora", [{}, {"r": 4}])
def test_a_checkpoint_of_the_saved_names_restores_the_reference(make_policy, pairs, nudge, lora):
    def module():
        owner = torch.nn.Module()
        owner.policy, owner.reference = make_policy(**lora), EMA(alpha=0.5, interval=2)
        owner.reference.attach(owner.policy)
        return owner

    first = module()
    nudge(first.policy)
    first.reference.after_step(first.policy, 2)
    state, names = first.state_dict(), first.reference.saved_names()
    assert names <= state.keys()
    trainable = {n for n, p in first.named_parameters() if p.requires_grad}
    assert trainable.isdisjoint(names)
    assert len(names) == len(trainable) + 1, "one averaged tensor per trainable one, and the step"

    second = module()
    assert not torch.equal(second.reference.score(pairs), first.reference.score(pairs))
    second.load_state_dict({k: v for k, v in state.items() if k in names | trainable}, strict=False)
    assert torch.equal(second.reference.score(pairs), first.reference.score(pairs))
    before = second.reference.score(pairs)
    nudge(second.policy)
    second.reference.after_step(second.policy, 2)
    assert torch.equal(second.reference.score(pairs), before), "step 2 was mixed in before the restart"


def test_frozen_weights_of_the_policy_are_not_averaged(make_policy):
    policy = make_policy()
    policy.model.get_input_embeddings().weight.requires_grad_(False)
    reference = EMA()
    reference.attach(policy)
    assert not any("embed_tokens" in name for name in reference.saved_names())


@pytest.mark.parametrize(
    ("arguments", "message"), [({"alpha": 0}, "alpha is 0"), ({"interval": 0}, "interval is 0")]
)
def test_impossible_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        EMA(**arguments)


def test_a_deep_copy_of_the_owner_follows_its_own_policy(make_policy, pairs, nudge):
    owner = torch.nn.Module()
    owner.policy, owner.reference = make_policy(r=4), EMA(alpha=1.0, interval=1)
    owner.reference.attach(owner.policy)
    twin = copy.deepcopy(owner)
    before = owner.reference.score(pairs)
    nudge(twin.policy)
    twin.reference.after_step(twin.policy, 1)
    assert twin.reference.policy is twin.policy
    assert torch.equal(owner.reference.score(pairs), before)
    assert not torch.equal(twin.reference.score(pairs), before)
