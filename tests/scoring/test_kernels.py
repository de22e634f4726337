"""The kernels for GPUs say what the loop over segments says.

FlexAttention runs here without its compiler, and has no gradient on a CPU; of FlashAttention there is a
stand-in that does what its documentation says of ``flash_attn_varlen_func``.
"""

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import flex_attention as torch_flex
from torch.nn.functional import scaled_dot_product_attention
from transformers import masking_utils
from transformers import modeling_flash_attention_utils as library
from transformers.integrations import flex_attention as flex_library

from lit_align.batches import Forest
from lit_align.outputs import LossOutput
from lit_align.scoring import kernels
from lit_align.scoring.attention import FORMS
from lit_align.scoring.layout import FlatLayout, flat_layout
from lit_align.scoring.policy import Policy
from tests.scoring.architectures import FLAT, build

ids = st.lists(st.integers(3, 52), max_size=6)
trees = st.tuples(ids, st.lists(ids, min_size=1, max_size=4))
forests = st.lists(trees, min_size=1, max_size=3).filter(
    lambda rows: any(c for _, group in rows for c in group)
)


def forest(rows) -> Forest:
    return Forest.from_lists([prompt for prompt, _ in rows], [group for _, group in rows])


def varlen(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    deterministic: bool = False,
) -> torch.Tensor:
    """``[total, heads, size]``; a causal mask is aligned with the last key."""
    assert causal
    assert dropout_p == 0.0
    assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
    assert cu_seqlens_q.diff().max() == max_seqlen_q
    assert cu_seqlens_k.diff().max() == max_seqlen_k
    found = []
    bounds = (t.tolist() for t in (cu_seqlens_q[:-1], cu_seqlens_q[1:], cu_seqlens_k[:-1], cu_seqlens_k[1:]))
    for a, b, c, d in zip(*bounds, strict=True):
        mask = torch.ones(b - a, d - c, dtype=torch.bool).tril(d - c - (b - a))
        parts = (q[a:b], k[c:d], v[c:d])
        query, key, value = (t.transpose(0, 1)[None] for t in parts)
        grouped = query.shape[1] != key.shape[1]
        out = scaled_dot_product_attention(
            query, key, value, attn_mask=mask, scale=softmax_scale, enable_gqa=grouped
        )
        found.append(out[0].transpose(0, 1))
    return torch.cat(found)


@pytest.fixture
def flash_attention(monkeypatch):
    monkeypatch.setattr(library, "_loaded_implementation", "flash_attention_2")
    monkeypatch.setattr(library, "_flash_varlen_fn", varlen)
    # Without a layout, and rows of one length, the library takes the other function.
    monkeypatch.setattr(library, "_flash_fn", dense)
    monkeypatch.setattr(library, "_flash_with_kvcache_fn", None, raising=False)
    monkeypatch.setattr(library, "_pad_fn", library._pad_input)
    monkeypatch.setattr(library, "_unpad_fn", library._unpad_input)
    monkeypatch.setattr(library, "_process_flash_kwargs_fn", library._lazy_define_process_function(varlen))
    monkeypatch.setattr(library, "_process_with_kvcache_kwargs_fn", dict)


def dense(q, k, v, causal, softmax_scale, **kwargs):
    query, key, value = (t.transpose(1, 2) for t in (q, k, v))
    grouped = query.shape[1] != key.shape[1]
    out = scaled_dot_product_attention(
        query, key, value, is_causal=causal, scale=softmax_scale, enable_gqa=grouped
    )
    return out.transpose(1, 2)


@pytest.fixture
def flex_attention(monkeypatch):
    # A compiler on the test machine is not what is tested.
    monkeypatch.setattr(
        flex_library.WrappedFlexAttention, "__call__", lambda self: flex_library.flex_attention
    )
    monkeypatch.setattr(torch_flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    make = masking_utils.create_block_mask
    monkeypatch.setattr(masking_utils, "create_block_mask", lambda *a, _compile, **k: make(*a, **k))


def pair(kind: str, implementation: str) -> tuple[Policy, Policy]:
    """The same model over the loop and over a kernel."""
    model = build(kind, FLAT[kind]).double()
    other: Any = copy.deepcopy(model)
    # Setting it the ordinary way asks for the hardware.
    other.config._attn_implementation_internal = implementation
    return Policy(model), Policy(other)


def squares(scores, batch) -> LossOutput:
    return LossOutput((scores.logps**2).sum(), torch.tensor(1.0), {})


ROWS = [
    ([5, 6, 7, 8, 9], [[10, 11], [12, 13, 14, 15], [16]]),
    ([], [[17, 18, 19]]),
    ([20], [[21, 22], [23, 24, 25]]),
]


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma", "gpt2", "gpt_neox", "phi", "granite"])
def test_scores_over_flash_attention_equal_those_over_the_loop(kind, flash_attention):
    loop, kernel = pair(kind, "flash_attention_2")
    batch = forest(ROWS)
    expected, found = loop(batch, loss=squares), kernel(batch, loss=squares)
    assert kernel.flat_layout(batch) is not None
    assert kernel.model.config._attn_implementation == FORMS["flash_attention_2"]
    torch.testing.assert_close(found.total, expected.total, rtol=1e-10, atol=1e-10)
    expected.total.backward()
    found.total.backward()
    for (name, a), b in zip(loop.model.named_parameters(), kernel.model.parameters(), strict=True):
        if a.grad is not None:
            torch.testing.assert_close(b.grad, a.grad, rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2"])
def test_scores_over_flex_attention_equal_those_over_the_loop(kind, flex_attention):
    loop, kernel = pair(kind, "flex_attention")
    batch = forest(ROWS)
    with torch.no_grad():
        expected, found = loop(batch), kernel(batch)
    assert kernel.flat_layout(batch) is not None
    assert kernel.model.config._attn_implementation == FORMS["flex_attention"]
    torch.testing.assert_close(found.logps, expected.logps, rtol=1e-10, atol=1e-10)


def test_under_autocast_the_leak_test_keeps_to_what_the_kernel_takes(flash_attention, monkeypatch):
    def half_only(q, *args, **kwargs):
        if q.dtype not in (torch.bfloat16, torch.float16):
            raise RuntimeError("FlashAttention only support fp16 and bf16 data type")
        return varlen(q, *args, **kwargs)

    monkeypatch.setattr(library, "_flash_varlen_fn", half_only)
    monkeypatch.setattr(library, "_flash_fn", lambda *a, **k: dense(*a, **k))
    model: Any = build("llama", FLAT["llama"])
    model.config._attn_implementation_internal = "flash_attention_2"
    policy = Policy(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert policy.flat_layout(forest(ROWS)) is not None


def test_a_padded_batch_is_the_library_s_own_attention(flash_attention):
    """Documents too long for a sliding window, for instance."""
    loop, kernel = pair("llama", "flash_attention_2")
    batch = forest(ROWS)
    flat = kernel(batch).logps
    kernel.layout = loop.layout = "padded"
    torch.testing.assert_close(kernel(batch).logps, loop(batch).logps, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(kernel(batch).logps, flat, rtol=1e-8, atol=1e-8)


def allowed(layout: FlatLayout) -> torch.Tensor:
    """``[T, T]`` what each token may see, written out piece by piece."""
    total = sum(layout.pieces)
    mask = torch.zeros(total, total, dtype=torch.bool)
    begin = root = 0
    for piece, stem in zip(layout.pieces, layout.stems, strict=True):
        root = begin if stem < 0 else root
        for i in range(begin, begin + piece):
            mask[i, begin : i + 1] = True
            mask[i, root : root + max(stem, 0)] = True
        begin += piece
    return mask


@settings(deadline=None, max_examples=30)
@given(rows=forests, data=st.data())
def test_the_block_mask_is_the_forest(rows, data):
    layout = flat_layout(forest(rows))
    expected = allowed(layout)
    total = len(expected)
    kept = data.draw(st.lists(st.integers(0, total - 1), min_size=1, unique=True).map(sorted))
    for places in (None, torch.tensor(kept)):
        mask = kernels.block_mask(layout, places)
        wanted = expected if places is None else expected[places]
        q, k = torch.meshgrid(torch.arange(len(wanted)), torch.arange(total), indexing="ij")
        zero = torch.zeros((), dtype=torch.long)
        assert torch.equal(mask.mask_mod(zero, zero, q, k), wanted)


@pytest.mark.parametrize("only_rows", [False, True])
def test_the_blocks_are_those_with_something_to_see(only_rows):
    """Rows of several blocks of 128: a list names each block that has a pair, and no other."""
    branches = [[7] * 150, [8] * 60, [9] * 200]
    layout = flat_layout(forest([([5] * 140, branches), ([6] * 30, [[7] * 170])]))
    expected = allowed(layout)
    places = None
    if only_rows:
        places = torch.arange(1, len(expected), 2)
        expected = expected[places]
    mask = kernels.block_mask(layout, places)
    size = 128
    rows, columns = (-(-n // size) * size for n in expected.shape)
    whole = torch.zeros(rows, columns, dtype=torch.bool)
    whole[: expected.shape[0], : expected.shape[1]] = expected
    blocks = whole.unflatten(1, (-1, size)).unflatten(0, (-1, size)).transpose(1, 2)
    assert (size, size) == mask.BLOCK_SIZE
    assert mask.seq_lengths == tuple(expected.shape)
    assert blocks.shape[1] >= 4
    assert torch.equal(mask.to_dense()[0, 0].bool(), blocks.any(-1).any(-1))
    # Blocks in which the mask is not asked at all.
    full = torch.zeros(blocks.shape[:2], dtype=torch.bool)
    for row, (count, found) in enumerate(
        zip(mask.full_kv_num_blocks[0, 0], mask.full_kv_indices[0, 0], strict=True)
    ):
        full[row, found[:count]] = True
    assert torch.equal(full, blocks.all(-1).all(-1))
    assert full.any()


@settings(deadline=None, max_examples=30)
@given(rows=forests, data=st.data())
def test_the_lengths_are_the_forest(rows, data):
    layout = flat_layout(forest(rows))
    expected = allowed(layout)
    kept = data.draw(st.lists(st.integers(0, len(expected) - 1), min_size=1, unique=True))
    for only_rows in (False, True):
        at = layout.at(torch.tensor(kept)) if only_rows else layout
        found = kernels.lengths(at, only_rows)
        gather = torch.arange(len(expected)) if found.gather is None else found.gather
        places = at.rows.kept if only_rows else torch.arange(len(expected))
        seen = torch.zeros(len(places), len(expected), dtype=torch.bool)
        for i in range(len(found.queries) - 1):
            a, b = found.queries[i : i + 2].tolist()
            c, d = found.keys[i : i + 2].tolist()
            for q in range(a, b):  # aligned with the last key
                seen[q, gather[c : d - (b - 1 - q)]] = True
        assert torch.equal(seen, expected[places])
        assert found.most_queries == found.queries.diff().max()
        assert found.most_keys == found.keys.diff().max()


def test_one_document_after_another_needs_no_copies_of_keys():
    layout = flat_layout(Forest.from_lists([[5, 6], [7]], [[[8, 9]], [[10]]]))
    assert kernels.lengths(layout).gather is None
