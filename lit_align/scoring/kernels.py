"""Attention of flat rows in one kernel, for GPUs: FlexAttention (blocks) or FlashAttention (uneven lengths).

A loop over segments, which is what ``sdpa`` gets, launches a kernel for each piece of a row; these launch
one. Both are the library's own calls, told of the forest: FlexAttention by a mask of blocks, FlashAttention
by where each piece's queries and keys begin. A branch's keys are those of its prompt and its own, under a
causal mask that ends at the last key (FlashAttention 2.1 and later).
"""

from functools import cache
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lit_align.scoring.layout import FlatLayout


def flex(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: FlatLayout | None,
    attention_mask: Any,
    dropout: float,
    scaling: float | None,
    *,
    only_rows: bool = False,
    **kwargs: Any,
) -> Tensor:
    """``[B, heads, T, head size]`` queries, keys and values to ``[B, T, heads, head size]``.

    Dong et al. 2024, "Flex Attention" (arXiv:2412.05496). Without a layout, what transformers does.
    """
    from transformers.integrations.flex_attention import flex_attention_forward

    if layout is not None:
        rows = layout.rows.kept if only_rows and layout.rows is not None else None
        attention_mask = layout.made(("flex", only_rows), lambda: block_mask(layout, rows))
    return flex_attention_forward(
        module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
    )[0]


def block_mask(layout: FlatLayout, rows: Tensor | None = None) -> Any:
    """Which blocks of the row attend to which; queries are all tokens, or those at ``rows`` ``[K]``."""
    from torch.nn.attention.flex_attention import create_block_mask

    device = layout.input_ids.device
    lengths = torch.tensor(layout.pieces)
    begins = lengths.cumsum(0) - lengths
    stems = torch.tensor(layout.stems)
    roots = torch.where(stems < 0, begins, -1).cummax(0).values
    each = torch.stack((begins, roots, roots + stems.clamp_min(0))).repeat_interleave(lengths, dim=1)
    begin, root, end = each.to(device)
    places = torch.arange(sum(layout.pieces), device=device) if rows is None else rows

    def sees(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        q = places[q]
        return ((k >= begin[q]) & (k <= q)) | ((k >= root[q]) & (k < end[q]))

    # Without a compiler it makes the whole mask first, T x T.
    make = _compiled(create_block_mask) if device.type == "cuda" else create_block_mask
    return make(sees, None, None, len(places), len(begin), device)


@cache
def _compiled(function: Any) -> Any:
    return torch.compile(function, dynamic=True)


class Lengths(NamedTuple):
    """Where the queries and keys of each piece are.

    Attributes:
        queries: ``[pieces + 1]`` first query of each, and their number; int32.
        keys: ``[pieces + 1]`` the same of the keys, after ``gather``.
        most_queries: of a piece.
        most_keys: of a piece.
        gather: ``[K]`` places in the row of the keys of each piece, ``None`` where that is the row itself.
    """

    queries: Tensor
    keys: Tensor
    most_queries: int
    most_keys: int
    gather: Tensor | None


def lengths(layout: FlatLayout, only_rows: bool = False) -> Lengths:
    """The forest as sequences of uneven lengths; with ``only_rows``, whose queries are the layout's rows."""
    whole = [(0, length) for length in layout.pieces]
    stretches = layout.rows.stretches if only_rows and layout.rows is not None else whole
    queries, keys, gather = [], [], []
    begin = root = 0
    for piece, stem, (start, end) in zip(layout.pieces, layout.stems, stretches, strict=True):
        root = begin if stem < 0 else root
        if end > start:
            shared = range(root, root + max(stem, 0))
            gather += [*shared, *range(begin, begin + end)]
            queries.append(end - start)
            keys.append(len(shared) + end)
        begin += piece
    device = layout.input_ids.device
    ends = [torch.tensor([0, *accumulate(n)], dtype=torch.int32, device=device) for n in (queries, keys)]
    index = None if gather == list(range(begin)) else torch.tensor(gather, device=device)
    return Lengths(ends[0], ends[1], max(queries, default=0), max(keys, default=0), index)


def flash(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: FlatLayout | None,
    attention_mask: Any,
    dropout: float,
    scaling: float | None,
    *,
    implementation: str,
    only_rows: bool = False,
    **kwargs: Any,
) -> Tensor:
    """``[B, heads, T, head size]`` queries, keys and values to ``[B, T, heads, head size]``.

    Dao 2023, "FlashAttention-2" (arXiv:2307.08691). Without a layout, what transformers does.
    """
    from transformers.integrations.flash_attention import get_target_dtype
    from transformers.modeling_flash_attention_utils import _flash_attention_forward

    query, key, value = (t.transpose(1, 2) for t in (query, key, value))
    if layout is not None:
        attention_mask = None
        found = layout.made(("flash", only_rows), lambda: lengths(layout, only_rows))
        if found.gather is not None:
            key, value = key.index_select(1, found.gather), value.index_select(1, found.gather)
        kwargs |= {"cu_seq_lens_q": found.queries, "cu_seq_lens_k": found.keys}
        kwargs |= {"max_length_q": found.most_queries, "max_length_k": found.most_keys}
    causal = kwargs.pop("is_causal", None)
    return _flash_attention_forward(
        query,
        key,
        value,
        attention_mask,
        query_length=query.shape[1],
        is_causal=module.is_causal if causal is None else causal,
        dropout=dropout,
        softmax_scale=scaling,
        target_dtype=get_target_dtype(query, module),
        attn_implementation=implementation,
        **kwargs,
    )
