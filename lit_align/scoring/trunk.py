"""Faster forms of the blocks of known models, put in the place of the library's own.

A module keeps its weights, its name and its place in the tree and changes its class to a subclass, whose
``forward`` is the fast form where that says the same and the original everywhere else. Norms and gated units
are asked whether they say the same, on small tensors; attention and the last layer are taken for models that
are known, only in flat rows, and the leak test compares the whole.
"""

from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lit_align.scoring.attention import forest_attention, forest_of
from lit_align.scoring.fused_mlp import GatedMLP, is_plain
from lit_align.scoring.fused_ops import RMSNorm, Rotation, swiglu

#: Families whose attention and decoder layer are those of Llama, with or without norms on the heads.
FAMILIES = ("Llama", "Qwen2", "Qwen3", "Mistral", "Gemma")


def install(model: nn.Module) -> None:
    """Give a model the fast forms of its blocks, where they say the same."""
    layers: list[Any] = [module for module in model.modules() if _is(module, "DecoderLayer")]
    for module in list(model.modules()):
        kind: Any = type(module)
        # Asking takes numbers, also where models are made without any.
        with torch.device("cpu"):
            form = _fast_form(module, last=bool(layers) and module is layers[-1])
        if form is not None:
            module.__class__ = _faster(kind, form)
    if layers:
        layers[-1].self_attn.is_last = True


def disable(model: nn.Module) -> None:
    """Let every block of a model compute as the library wrote it."""
    for module in model.modules():
        if isinstance(module, _Fast):
            module.fast = False


def _fast_form(module: nn.Module, last: bool) -> Any:
    kind: Any = type(module)
    if isinstance(module, _Fast):
        return None
    if kind.__name__.endswith("RMSNorm") and _norm_offset(kind) is not None:
        return _FastNorm
    if kind.__name__.endswith("MLP") and _is_swiglu(kind, module):
        return _FastMLP
    if _is(module, "Attention"):
        return _FastAttention
    return _FastLastLayer if last else None


def _is(module: nn.Module, part: str) -> bool:
    return type(module).__name__ in {f"{family}{part}" for family in FAMILIES}


@cache
def _faster(kind: Any, form: Any) -> Any:
    # The same name, by which libraries recognise layers.
    return type(kind.__name__, (form, kind), {"__module__": kind.__module__, "original": kind, "form": form})


def _make(original: Any, form: Any) -> Any:
    kind = _faster(original, form)
    return kind.__new__(kind)


class _Fast(nn.Module):
    fast = True
    original: ClassVar[Any]
    form: ClassVar[Any]

    def __reduce_ex__(self, protocol: Any) -> Any:
        # Copies and pickles find the class by what it was made from: no module holds it under its name.
        return _make, (self.original, self.form), super().__reduce_ex__(2)[2]


class _FastNorm(_Fast):
    weight: Any

    def forward(self, hidden_states: Tensor) -> Tensor:
        # The library's code rounds float64 to float32 in between, and lower precision on the way out.
        if not self.fast or hidden_states.dtype != torch.float32 or self.weight.dtype != torch.float32:
            return super().forward(hidden_states)
        offset = _norm_offset(self.original)
        return RMSNorm.apply(hidden_states, self.weight, _eps(self), offset)


class _FastMLP(_Fast):
    gate_proj: Any
    up_proj: Any
    down_proj: Any

    def forward(self, x: Tensor) -> Tensor:
        if not self.fast:
            return super().forward(x)
        if torch.is_grad_enabled() and is_plain(x, self.gate_proj, self.up_proj, self.down_proj):
            return GatedMLP.apply(x, self.gate_proj.weight, self.up_proj.weight, self.down_proj.weight)
        return self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x)))


class _FastAttention(_Fast):
    is_last = False
    layer_idx: Any
    head_dim: Any
    q_proj: Any
    k_proj: Any
    v_proj: Any
    o_proj: Any
    attention_dropout: Any
    scaling: Any

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        layout = forest_of(attention_mask)
        if not self.fast or layout is None:
            return super().forward(
                hidden_states, position_embeddings, attention_mask, past_key_values, **kwargs
            )
        half = self.head_dim // 2
        cos, sin = (t[:, :, None, :half] for t in position_embeddings)
        keys = self._heads(self.k_proj, "k_norm", hidden_states, cos, sin)
        values = self.v_proj(hidden_states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        if past_key_values is not None:
            keys, values = past_key_values.update(keys, values, self.layer_idx)
        if self.is_last and layout.rows is not None:
            rows = layout.rows.kept
            hidden_states, cos, sin = (t.index_select(1, rows) for t in (hidden_states, cos, sin))
        queries = self._heads(self.q_proj, "q_norm", hidden_states, cos, sin)
        out, _ = forest_attention(
            self,
            queries,
            keys,
            values,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            only_rows=self.is_last,
        )
        return self.o_proj(out.flatten(2)), None

    def _heads(self, project: nn.Module, norm: str, states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        heads = project(states).unflatten(-1, (-1, self.head_dim))
        if hasattr(self, norm):
            heads = getattr(self, norm)(heads)
        return Rotation.apply(heads, cos.to(heads.dtype), sin.to(heads.dtype)).transpose(1, 2)


class _FastLastLayer(_Fast):
    input_layernorm: Any
    self_attn: Any
    post_attention_layernorm: Any
    mlp: Any

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = False,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Every token gives keys and values; only the rows that are asked for go on from there."""
        layout = forest_of(attention_mask)
        if not self.fast or layout is None or layout.rows is None:
            return super().forward(
                hidden_states,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                use_cache=use_cache,
                position_embeddings=position_embeddings,
                **kwargs,
            )
        attended, _ = self.self_attn(
            hidden_states=self.input_layernorm(hidden_states),
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_embeddings=position_embeddings,
        )
        hidden_states = hidden_states.index_select(1, layout.rows.kept) + attended
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))


def _eps(module: Any) -> float:
    return float(module.variance_epsilon if hasattr(module, "variance_epsilon") else module.eps)


@cache
def _norm_offset(kind: Any) -> float | None:
    """What a norm of this class adds to its weight, ``None`` where it computes something else."""
    probe: Any = _blank(kind)
    generator = torch.Generator().manual_seed(0)
    probe.weight = nn.Parameter(torch.randn(16, generator=generator))
    probe.variance_epsilon = probe.eps = 1e-2
    x = torch.randn(1, 3, 16, generator=generator)
    found = _answer(probe, x)
    for offset in (0.0, 1.0):
        ours = RMSNorm.apply(x, probe.weight.detach(), 1e-2, offset)
        if (
            found is not None
            and found.shape == ours.shape
            and torch.allclose(found, ours, rtol=1e-6, atol=1e-6)
        ):
            return offset
    return None


@cache
def _is_standard_mlp(kind: Any) -> bool:
    probe: Any = _blank(kind)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        probe.gate_proj, probe.up_proj, probe.down_proj = nn.Linear(8, 12), nn.Linear(8, 12), nn.Linear(12, 8)
        x = torch.randn(1, 3, 8)
    probe.act_fn = nn.SiLU()
    found = _answer(probe, x)
    with torch.no_grad():
        ours = probe.down_proj(swiglu(probe.gate_proj(x), probe.up_proj(x)))
    return found is not None and torch.allclose(found, ours, rtol=1e-6, atol=1e-6)


def _is_swiglu(kind: Any, module: Any) -> bool:
    parts = all(hasattr(module, name) for name in ("gate_proj", "up_proj", "down_proj", "act_fn"))
    return parts and type(module.act_fn).__name__ in ("SiLU", "SiLUActivation") and _is_standard_mlp(kind)


def _blank(kind: type[nn.Module]) -> nn.Module:
    probe = kind.__new__(kind)
    nn.Module.__init__(probe)
    return probe


def _answer(probe: nn.Module, x: Tensor) -> Tensor | None:
    try:
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            found = probe(x)
    except (AttributeError, TypeError, RuntimeError):
        return None  # it needs more than what such a block has: another kind of block
    return found if isinstance(found, Tensor) else None
