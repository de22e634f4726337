"""References that are not copies, what all have in common, and which one is the default."""

import copy
import pickle

import pytest
import torch
from torch.nn.functional import logsigmoid

from lit_align.models.build import build_causal_lm
from lit_align.scoring.policy import Policy
from lit_align.scoring.references import (
    EMA,
    AdapterOff,
    Cached,
    FromPath,
    FrozenCopy,
    NamedAdapter,
    NoReference,
    build_reference,
    default_reference,
)


def flags(policy):
    return {n: (p.requires_grad) for n, p in policy.named_parameters()}


def modes(policy):
    return {n: m.training for n, m in policy.named_modules()}


# -- kinds -----------------------------------------------------------------------------------------


def test_adapter_off_is_the_base_exactly(make_policy, pairs, nudge, present):
    policy = make_policy(r=4)
    nudge(policy)
    reference = AdapterOff()
    reference.attach(policy)
    with torch.no_grad():
        expected = make_policy().eval()(pairs).logps
    assert torch.equal(reference.score(pairs), expected)
    assert not torch.equal(present(policy, pairs), expected)
    assert not list(reference.parameters())


def test_adapter_off_refuses_what_it_cannot_mean(make_policy):
    with pytest.raises(ValueError, match="has no adapters"):
        AdapterOff().attach(make_policy())
    policy = make_policy(r=4)
    policy.model.get_base_model().lm_head.weight.requires_grad_(True)
    with pytest.raises(ValueError, match="base would move"):
        AdapterOff().attach(policy)


def test_a_named_adapter_is_loaded_frozen(make_policy, pairs, nudge, present, tmp_path):
    other = make_policy(r=4)
    nudge(other)
    other.model.save_pretrained(tmp_path)
    policy = make_policy(r=2)
    start = present(policy, pairs)
    reference = NamedAdapter("teacher", path=str(tmp_path))
    reference.attach(policy)
    torch.testing.assert_close(reference.score(pairs), present(other, pairs))
    assert torch.equal(present(policy, pairs), start)
    assert not any(p.requires_grad for n, p in policy.named_parameters() if ".teacher." in n)


def test_a_named_adapter_that_the_policy_has(make_policy, pairs, nudge, present):
    policy = make_policy(r=4)
    start = present(policy, pairs)
    policy.model.add_adapter("start", policy.model.peft_config["default"])
    reference = NamedAdapter("start")
    reference.attach(policy)
    nudge(policy)
    torch.testing.assert_close(reference.score(pairs), start)


def test_a_named_adapter_refuses_what_it_cannot_mean(make_policy, tmp_path):
    with pytest.raises(ValueError, match="use FromPath"):
        NamedAdapter().attach(make_policy())
    with pytest.raises(ValueError, match=r"no adapter 'start' \(it has default\)"):
        NamedAdapter("start").attach(make_policy(r=4))
    with pytest.raises(ValueError, match="would move with it"):
        NamedAdapter("default").attach(make_policy(r=4))
    with pytest.raises(ValueError, match="take another"):
        NamedAdapter("default", path=str(tmp_path)).attach(make_policy(r=4))


def test_from_path_reads_a_checkpoint(make_policy, pairs, present, tmp_path):
    other = make_policy()
    other.model.lm_head.weight.data.mul_(2)
    other.model.save_pretrained(tmp_path)
    reference = FromPath(str(tmp_path))
    reference.attach(make_policy())
    assert torch.equal(reference.score(pairs), present(other, pairs))
    assert not any(p.requires_grad for p in reference.parameters())
    assert {p.dtype for p in reference.parameters()} == {torch.float32}
    narrow = FromPath(str(tmp_path), dtype="bfloat16")
    narrow.attach(make_policy())
    assert {p.dtype for p in narrow.parameters()} == {torch.bfloat16}


def test_no_reference_is_zero(make_policy, pairs):
    reference = NoReference()
    reference.attach(make_policy())
    assert torch.equal(reference.score(pairs), torch.zeros(16))


# -- what all have in common -----------------------------------------------------------------------


def every_kind(tmp_path):
    return {
        "frozen": ({}, FrozenCopy()),
        "frozen adapter": ({"r": 4}, FrozenCopy()),
        "ema": ({}, EMA()),
        "ema adapter": ({"r": 4}, EMA()),
        "off": ({"r": 4}, AdapterOff()),
        "named": ({"r": 4}, NamedAdapter("start")),
        "cached": ({}, Cached(path=str(tmp_path))),
        "cached adapter": ({"r": 4}, Cached(AdapterOff(), path=str(tmp_path))),
        "none": ({}, NoReference()),
    }


KINDS = pytest.mark.parametrize("kind", list(every_kind("")))


@KINDS
def test_scoring_leaves_no_trace(kind, make_policy, pairs, tmp_path):
    lora, reference = every_kind(tmp_path)[kind]
    policy = make_policy(**lora)
    if lora:
        policy.model.add_adapter("start", policy.model.peft_config["default"])
        # A flag and a mode set by hand: peft's own switches would reset the first.
        next(p for p in policy.parameters() if p.requires_grad).requires_grad_(False)
    policy.model.get_input_embeddings().eval()
    before_attach = flags(policy), modes(policy)
    reference.attach(policy)
    reference.attach(policy)
    assert {n: f for n, f in flags(policy).items() if n in before_attach[0]} == before_attach[0]
    before = flags(policy), modes(policy)
    loss = policy(pairs).logps.sum()
    first = reference.score(pairs)
    # Between forward and backward, where an algorithm may well call it.
    loss.backward()
    assert (flags(policy), modes(policy)) == before
    if lora:
        assert policy.model.active_adapters == ["default"]
    assert torch.equal(first, reference.score(pairs)), "no dropout"
    assert first.shape == (16,)
    assert first.dtype == torch.float32
    assert not first.requires_grad


@KINDS
def test_flags_come_back_after_a_failure(kind, make_policy, pairs, tmp_path, monkeypatch):
    lora, reference = every_kind(tmp_path)[kind]
    policy = make_policy(**lora)
    if lora:
        policy.model.add_adapter("start", policy.model.peft_config["default"])
    reference.attach(policy)
    before = flags(policy), modes(policy)

    def fail(*_, **__):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(Policy, "forward", fail)
    if kind != "none":
        with pytest.raises(RuntimeError, match="out of memory"):
            reference.score(pairs)
    assert (flags(policy), modes(policy)) == before


@KINDS
def test_the_policy_is_not_registered_again(kind, make_policy, tmp_path):
    lora, reference = every_kind(tmp_path)[kind]
    policy = make_policy(**lora)
    if lora:
        policy.model.add_adapter("start", policy.model.peft_config["default"])
    reference.attach(policy)
    assert {id(p) for p in reference.parameters()}.isdisjoint(id(p) for p in policy.parameters())
    assert not any(m is policy for m in reference.modules())


@KINDS
def test_plain_data_copies_and_pickles(kind, tmp_path):
    _, reference = every_kind(str(tmp_path))[kind]
    spec = reference.spec()
    assert spec["class_path"] == f"lit_align.scoring.references.{type(reference).__name__}"
    for twin in (
        build_reference(spec),
        copy.deepcopy(reference),
        pickle.loads(pickle.dumps(reference)),
    ):
        assert type(twin) is type(reference)
        assert twin.spec() == spec


def test_a_description_that_names_nothing_is_refused():
    with pytest.raises(ValueError, match=r"no reference 'os.system' \(known: AdapterOff"):
        build_reference({"class_path": "os.system", "init_args": {}})
    with pytest.raises(ValueError, match="no reference"):
        build_reference({"class_path": "elsewhere.EMA"})
    assert build_reference({"class_path": "EMA", "init_args": {"alpha": 1.0}}).alpha == 1.0


def test_a_reference_belongs_to_one_policy(make_policy, pairs):
    reference = FrozenCopy()
    with pytest.raises(RuntimeError, match="call attach"):
        AdapterOff().score(pairs)
    reference.attach(make_policy())
    with pytest.raises(RuntimeError, match="make a new one"):
        reference.attach(make_policy())


# -- the default -----------------------------------------------------------------------------------


def test_the_default_makes_the_first_dpo_loss_ln_2(make_policy, pairs, nudge, present, tmp_path):
    """Whatever happened to the model before: -log sigmoid(beta * 0) = ln 2 = 0.693147."""
    plain = make_policy()
    changed = make_policy()
    nudge(changed)
    new_adapter = make_policy(r=4)
    trained_adapter = make_policy(r=4)
    nudge(trained_adapter)
    trained_adapter.model.save_pretrained(tmp_path / "adapter")
    make_policy().model.save_pretrained(tmp_path / "base")
    description = {"path": str(tmp_path / "base"), "adapter": str(tmp_path / "adapter")}
    continued = Policy(build_causal_lm(description)).train()
    pissa = make_policy(r=4, extra={"init_lora_weights": "pissa"})
    expected = {
        plain: FrozenCopy,
        changed: FrozenCopy,
        new_adapter: AdapterOff,
        trained_adapter: FrozenCopy,
        continued: FrozenCopy,
        pissa: FrozenCopy,
    }
    for policy, kind in expected.items():
        reference = default_reference(policy)
        assert type(reference) is kind
        reference.attach(policy)
        sums = pairs.sum_per_completion(present(policy, pairs) - reference.score(pairs))
        losses = -logsigmoid(0.1 * (sums[0::2] - sums[1::2]))
        torch.testing.assert_close(losses, torch.full((3,), 0.6931471805599453))
    bare = AdapterOff()
    bare.attach(continued)
    assert not torch.allclose(bare.score(pairs), present(continued, pairs)), "the bare base is another model"


def test_a_temperature_divides_the_logits_of_the_reference(pairs, make_policy, nudge):
    policy = make_policy()
    nudge(policy)
    reference = FrozenCopy()
    reference.attach(policy)
    found = reference.score(pairs, 0.7)
    with torch.no_grad():
        expected = policy.eval()(pairs, temperature=0.7).logps
    assert torch.allclose(found, expected, atol=1e-6)
    assert not torch.allclose(found, reference.score(pairs), atol=1e-4)


def test_the_cache_keeps_temperatures_apart(pairs, make_policy, nudge, tmp_path):
    policy = make_policy()
    nudge(policy)
    reference = Cached(FrozenCopy(), path=str(tmp_path))
    reference.attach(policy)
    warm = reference.score(pairs, 2.0)
    assert not torch.allclose(warm, reference.score(pairs), atol=1e-4)
    assert torch.equal(warm, reference.score(pairs, 2.0))
