"""Attention that never crosses from one document of a flat row into another.

It is registered with transformers under names of its own, one for each kernel, and behaves as the library's
does until a mask brings a layout with it. The layout travels as an argument of the forward it belongs to, so
that a block that is recomputed in the backward pass sees its own layout, whatever was forwarded in between.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from lit_align.scoring import kernels
from lit_align.scoring.layout import FlatLayout

#: The library's implementations that have a form for flat rows, and the name of that form. The library takes
#: every name with "flash" in it for one of its own kernels.
FORMS = {
    "sdpa": "lit_align_forest",
    "flex_attention": "lit_align_forest_flex",
    **{f"flash_attention_{n}": f"lit_align_forest_varlen_{n}" for n in (2, 3, 4)},
}
_LIBRARY = {ours: theirs for theirs, ours in FORMS.items()}

#: Query ``[B, heads, T, head size]``, key, value, scaling -> ``[B, T, heads, head size]``.
Attend = Callable[[Tensor, Tensor, Tensor, float | None], Tensor]


def install(model: Any) -> bool:
    """Let the model use it.

    Returns:
        Whether it does: a model whose way of computing its attention has no form for flat rows keeps that.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    current = model.config._attn_implementation
    if current in _LIBRARY:
        return True
    if current not in FORMS:
        return False
    form = FORMS[current]
    AttentionInterface.register(form, forest_attention)
    AttentionMaskInterface.register(form, ALL_MASK_ATTENTION_FUNCTIONS[current])
    model.set_attn_implementation(form)
    return bool(model.config._attn_implementation == form)


def needs_low_precision(model: Any) -> bool:
    """Whether the kernel that the model attends through takes bf16 and fp16 alone (FlashAttention)."""
    return _LIBRARY.get(model.config._attn_implementation, "").startswith("flash_attention")


def carrier(layout: FlatLayout) -> Tensor:
    """A mask that carries a layout through a model.

    A mask of four dimensions is passed on to every layer as it is. It has no elements, so that code
    which took it for an ordinary mask would fail instead of attending across documents.
    """
    mask = _empty(layout.input_ids.device)
    mask.forest = layout  # type: ignore[attr-defined]
    return mask


def bringing(attend: Attend, device: torch.device) -> Tensor:
    """A mask that brings its own attention, for a model that no gradient flows through."""
    mask = _empty(device)
    mask.attend = attend  # type: ignore[attr-defined]
    return mask


def _empty(device: torch.device) -> Tensor:
    return torch.zeros((1, 1, 0, 0), dtype=torch.bool, device=device)


def forest_of(mask: Tensor | None) -> FlatLayout | None:
    """The layout that a mask carries, if it carries one."""
    return getattr(mask, "forest", None)


def forest_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    only_rows: bool = False,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of one layer.

    Args:
        module: the layer's attention module.
        query: ``[1, heads, T, head size]``.
        key: ``[1, key-value heads, T, head size]``.
        value: as ``key``.
        attention_mask: what :func:`carrier` or :func:`bringing` made, or an ordinary mask.
        dropout: rate.
        scaling: factor on the products, by default one over the root of the head size.
        only_rows: the queries are those of the layout's ``rows``, where it has any.
        kwargs: further arguments of the model.

    Returns:
        ``[1, T, heads, head size]``, and no weights.
    """
    own: Attend | None = getattr(attention_mask, "attend", None)
    layout = forest_of(attention_mask)
    if own is not None:
        return own(query, key, value, scaling), None
    dropout = dropout if module.training else 0.0
    theirs = _LIBRARY[module.config._attn_implementation]
    options: dict[str, Any] = {"dropout": dropout, "scaling": scaling, **kwargs}
    if theirs != "sdpa":
        kernel = kernels.flex if theirs == "flex_attention" else partial(kernels.flash, implementation=theirs)
        tensors = (query, key, value, layout, attention_mask)
        return kernel(module, *tensors, only_rows=only_rows, **options), None
    if layout is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    unknown = [name for name in ("softcap", "position_bias", "s_aux") if kwargs.get(name) is not None]
    if unknown:
        raise NotImplementedError(f"attention with {', '.join(unknown)}")
    narrow = query.dtype
    # The CPU's backward kernel takes more than twice the time in bfloat16. Without gradients too, so that a
    # reference says exactly what the policy says.
    if query.is_cpu and narrow == torch.bfloat16:
        with torch.autocast("cpu", enabled=False):
            wide = (query.float(), key.float(), value.float())
            return _in_pieces(*wide, layout, dropout, scaling, only_rows).to(narrow), None
    return _in_pieces(query, key, value, layout, dropout, scaling, only_rows), None


def _in_pieces(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: FlatLayout,
    dropout: float,
    scaling: float | None,
    only_rows: bool,
) -> Tensor:
    options: dict[str, Any] = {
        "dropout_p": dropout,
        "scale": scaling,
        "enable_gqa": query.shape[1] != key.shape[1],
    }
    stretches = [(0, length) for length in layout.pieces]
    if only_rows and layout.rows is not None:
        stretches = list(layout.rows.stretches)
    # One split, whose backward is one concatenation; slices would each fill a gradient of the whole row.
    queries = query.split([end - start for start, end in stretches], dim=2)
    keys, values = (t.split(layout.pieces, dim=2) for t in (key, value))
    found = []
    stem_key = stem_value = key
    pieces = zip(queries, keys, values, stretches, layout.stems, layout.prompts, strict=True)
    for q, k, v, (start, end), stem, prompt in pieces:
        if stem < 0:
            stem_key, stem_value = k[:, :, :prompt], v[:, :, :prompt]
        if start == end:
            continue
        if end < k.shape[2]:
            k, v = k[:, :, :end], v[:, :, :end]
        if stem > 0:
            k, v = torch.cat((stem_key, k), dim=2), torch.cat((stem_value, v), dim=2)
        before = start + max(stem, 0)
        if before:
            mask = layout.branch_mask(end - start, before)
            out = scaled_dot_product_attention(q, k, v, attn_mask=mask, **options)
        else:
            out = scaled_dot_product_attention(q, k, v, is_causal=True, **options)
        found.append(out.transpose(1, 2))
    return torch.cat(found, dim=1)
