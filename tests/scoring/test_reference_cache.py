"""The cache of reference log-probs: nothing is computed twice, and nothing stale is ever used."""

import gc
import time

import pytest
import torch

from lit_align.batches import Forest
from lit_align.scoring.policy import Policy
from lit_align.scoring.reference_cache import LogpStore, cache_root, row_key, weights_digest
from lit_align.scoring.references import EMA, AdapterOff, Cached, FromPath, FrozenCopy, NamedAdapter


@pytest.fixture
def forwards(monkeypatch):
    """Completions per forward pass, in order."""
    seen = []
    forward = Policy.forward

    def counted(self, batch, **options):
        seen.append(batch.num_completions)
        return forward(self, batch, **options)

    monkeypatch.setattr(Policy, "forward", counted)
    return seen


def cached(policy, path, inner=None):
    reference = Cached(inner, path=str(path))
    reference.attach(policy)
    return reference


def test_a_second_epoch_and_a_rerun_cost_no_forward(make_policy, pairs, forwards, tmp_path):
    policy = make_policy()
    plain = FrozenCopy()
    plain.attach(policy)
    expected = plain.score(pairs)
    forwards.clear()
    reference = cached(policy, tmp_path)
    assert torch.equal(reference.score(pairs), expected)
    assert torch.equal(reference.score(pairs), expected)
    assert torch.equal(reference.score(pairs.select([2, 0])), torch.cat([expected[11:], expected[:5]]))
    assert forwards == [6]
    reference.flush()
    assert torch.equal(cached(make_policy(), tmp_path).score(pairs), expected)
    assert forwards == [6]


def test_a_changed_row_alone_is_computed_again(make_policy, pairs, forwards, tmp_path):
    reference = cached(make_policy(), tmp_path)
    before = reference.score(pairs)
    rows = [list(row) for row in pairs.sequences()]
    changed = Forest.from_lists(
        [[5, 6, 7], [8], []],
        [[[9, 10, 2], [11, 2]], [[12, 13, 40, 2], [15, 2]], [[16, 17, 2], [18, 2]]],
        weights=[[[1, 1, 1], [1, 1]], [[1, 0, 1, 1], [1, 1]], [[1, 1, 1], [1, 1]]],
    )
    assert [list(row) for row in changed.sequences()][2] != rows[2]
    forwards.clear()
    after = reference.score(changed)
    assert forwards == [2], "the pair that holds the changed completion, and no other"
    assert torch.equal(after[:5], before[:5])
    assert torch.equal(after[11:], before[11:])
    assert not torch.equal(after[5:9], before[5:9])


def test_another_mask_is_another_row(make_policy, pairs, forwards, tmp_path):
    reference = cached(make_policy(), tmp_path)
    assert reference.score(pairs)[6] == 0
    full = Forest.from_lists([[8]], [[[12, 13, 14, 2], [15, 2]]])
    forwards.clear()
    assert (reference.score(full) != 0).all()
    assert forwards == [2]


@pytest.mark.parametrize("inner", [FrozenCopy, AdapterOff])
def test_one_changed_weight_and_all_is_computed_again(make_policy, pairs, forwards, tmp_path, inner):
    lora = {"r": 4} if inner is AdapterOff else {}
    first = cached(make_policy(**lora), tmp_path, inner())
    first.score(pairs)
    first.flush()
    policy = make_policy(**lora)
    weight = next(p for n, p in policy.named_parameters() if n.endswith("norm.weight"))
    weight.data[0] = torch.nextafter(weight.data[0], torch.tensor(2.0))
    forwards.clear()
    cached(policy, tmp_path, inner()).score(pairs)
    assert forwards == [6]


def test_the_adapter_off_is_the_same_reference_however_the_adapter_stands(
    make_policy, pairs, forwards, nudge, tmp_path
):
    reference = cached(make_policy(r=4), tmp_path, AdapterOff())
    reference.score(pairs)
    reference.flush()
    trained = make_policy(r=4)
    nudge(trained)
    forwards.clear()
    cached(trained, tmp_path, AdapterOff()).score(pairs)
    assert forwards == []


def test_adapters_and_their_scale_are_part_of_the_digest(make_policy, nudge):
    def digest(change=None, **lora):
        policy = make_policy(**{"r": 4, **lora})
        torch.manual_seed(0)
        policy.model.add_adapter("other", policy.model.peft_config["default"])
        if change:
            change(policy)
        reference = NamedAdapter("other")
        reference.attach(policy)
        return reference.digest()

    def move(policy):
        next(p for n, p in policy.named_parameters() if "lora_B.other" in n).data[0, 0] = 1.0

    plain = digest()
    assert digest() == plain
    assert digest(nudge) == plain, "the trained adapter is not the reference"
    assert digest(move) != plain
    assert digest(alpha=7) != plain


def test_precision_is_part_of_the_key(make_policy, pairs, forwards, tmp_path):
    reference = cached(make_policy(), tmp_path)
    full = reference.score(pairs)
    with torch.autocast("cpu", torch.bfloat16):
        half = reference.score(pairs)
    assert forwards == [6, 6]
    assert not torch.equal(full, half)
    assert torch.equal(reference.score(pairs), full)


def test_the_default_inner_reference_is_the_policys_own(make_policy, pairs, tmp_path):
    reference = cached(make_policy(r=4), tmp_path)
    assert isinstance(reference.asked, AdapterOff)
    assert reference.spec()["init_args"]["inner"] is None, "what the user wrote"
    assert reference.score(pairs).shape == (16,)


def test_a_checkpoint_as_inner_reference(make_policy, pairs, present, tmp_path):
    other = make_policy()
    other.model.lm_head.weight.data.mul_(2)
    other.model.save_pretrained(tmp_path / "model")
    reference = cached(make_policy(), tmp_path / "cache", FromPath(str(tmp_path / "model")))
    assert torch.equal(reference.score(pairs), present(other, pairs))


def test_what_moves_cannot_be_cached():
    with pytest.raises(ValueError, match="EMA"):
        Cached(EMA())


def test_what_was_held_back_is_written_when_the_reference_goes(make_policy, pairs, forwards, tmp_path):
    reference = cached(make_policy(), tmp_path)
    reference.score(pairs)
    assert not list(tmp_path.rglob("*.safetensors"))
    del reference
    gc.collect()
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1


def test_an_empty_completion_is_remembered_too(make_policy, forwards, tmp_path):
    reference = cached(make_policy(), tmp_path)
    batch = Forest.from_lists([[5], [6]], [[[], [7]], [[8], [9]]])
    first = reference.score(batch)
    assert torch.equal(reference.score(batch), first)
    assert forwards == [4]


def test_the_root_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("LIT_ALIGN_CACHE", str(tmp_path))
    assert cache_root() == tmp_path
    monkeypatch.delenv("LIT_ALIGN_CACHE")
    assert cache_root().name == "lit-align"


# -- store and digest ------------------------------------------------------------------------------


def test_a_store_sees_what_another_process_wrote(tmp_path):
    mine, theirs = LogpStore(tmp_path), LogpStore(tmp_path)
    key = row_key([1], [2, 3], [1, 1])
    theirs.put(key, torch.tensor([-0.5, -1.5]))
    assert mine.get(key, 2) is None
    theirs.flush()
    assert torch.equal(mine.get(key, 2), torch.tensor([-0.5, -1.5]))
    with pytest.raises(ValueError, match="damaged"):
        mine.get(key, 3)


def test_a_store_writes_by_itself_and_never_twice(tmp_path):
    store = LogpStore(tmp_path, flush_every=2)
    for i in range(5):
        store.put(row_key([i], [1], [1]), torch.tensor([float(i)]))
    assert len(list(tmp_path.iterdir())) == 2
    store.flush()
    store.flush()
    assert len(list(tmp_path.iterdir())) == 3
    assert all(path.suffix == ".safetensors" for path in tmp_path.iterdir())
    again = LogpStore(tmp_path)
    assert [again.get(row_key([i], [1], [1]), 1).item() for i in range(5)] == [0, 1, 2, 3, 4]


def test_a_failed_write_leaves_no_file(tmp_path, monkeypatch):
    store = LogpStore(tmp_path)
    store.put(row_key([1], [2], [1]), torch.zeros(1))

    def full(_):
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="disk full"):
        store.flush()
    assert not list(tmp_path.iterdir())


def test_a_row_is_its_ids_and_what_counts():
    base = row_key([1, 2], [3], [1.0])
    assert base == row_key((1, 2), [3], [0.5]), "a weight scales the loss, not the log-prob"
    assert (
        len({base, row_key([1], [2, 3], [1, 1]), row_key([1, 2], [4], [1]), row_key([1, 2], [3], [0])}) == 4
    )


def test_a_digest_sees_bits_names_shapes_and_dtypes():
    one = torch.zeros(2, 3)
    digests = {
        weights_digest({"a": one}),
        weights_digest({"b": one}),
        weights_digest({"a": one.reshape(3, 2)}),
        weights_digest({"a": one.to(torch.float16)}),
        weights_digest({"a": -one}),
        weights_digest({"a": one}, adapter={"lora_alpha": 3}),
    }
    assert len(digests) == 6
    assert weights_digest({"a": one.T.contiguous().T}) in digests, "memory layout does not matter"
    scalar = weights_digest({"a": torch.tensor(1.0), "b": one.to(torch.bfloat16)})
    assert scalar == weights_digest({"b": one.to(torch.bfloat16), "a": torch.tensor(1.0)})


def test_a_digest_is_fast_enough():
    tensors = {str(i): torch.zeros(1024, 1024) for i in range(25)}
    start = time.perf_counter()
    weights_digest(tensors)
    assert time.perf_counter() - start < 5, "100 MB; a second per GB was meant"
