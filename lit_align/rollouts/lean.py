"""A decoding step of Llama, Mistral, Qwen2 and Qwen3 with nothing but its tensor operations.

A step for a few rows does little arithmetic, and most of its time goes into the calls around it: modules,
hooks, keyword arguments, casts to the type a tensor already has. The same operations on the same weights,
written out, take a third of the time on a CPU. Layers that are not plain matrices (quantised ones, adapters
with a forward of their own) are called as they are.
"""

import logging
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, scaled_dot_product_attention

from lit_align.rollouts.lean_parts import Addition, Norm, Product, addition, gated, joined
from lit_align.rollouts.slots import Slots

_KINDS = {"LlamaModel", "MistralModel", "Qwen2Model", "Qwen3Model"}
#: Rotations that depend on the position alone, not on how long the text is.
_FIXED_ROTATIONS = {"default", "linear", "llama3", "yarn"}

logger = logging.getLogger(__name__)


class Layer(NamedTuple):
    """What a layer is made of.

    Attributes:
        attention_norm: before the attention.
        heads: queries, keys and values side by side.
        head_norm: of queries and keys together, where they have one.
        output: adds the attention's output to the states.
        feed_norm: before the gated unit.
        unit: the gated unit, up to its last product.
        down: adds the unit's output to the states.
        scaling: of the products of queries and keys.
    """

    attention_norm: Norm
    heads: Product
    head_norm: Norm | None
    output: Addition
    feed_norm: Norm
    unit: Product
    down: Addition
    scaling: float


class LeanDecoder:
    """One token a row through a decoder.

    Args:
        trunk: the decoder, one of those that :func:`lean_decoder` takes.
        length: longest text.
    """

    def __init__(self, trunk: Any, length: int) -> None:
        config, attention = trunk.config, trunk.layers[0].self_attn
        self.embeddings = trunk.embed_tokens.weight
        self.norm = Norm(trunk.norm.weight, config.rms_norm_eps)
        self.layers = [_layer(layer, config) for layer in trunk.layers]
        self.size = attention.head_dim
        self.queries, self.shared = config.num_attention_heads, config.num_key_value_heads
        positions = torch.arange(length, device=self.embeddings.device)[None]
        cosine, sine = trunk.rotary_emb(self.embeddings[:1], positions)
        # The first half of a head turns the other way: its sign is the sine's.
        sign = torch.tensor([-1, 1], dtype=sine.dtype, device=sine.device)[:, None]
        self.cosine = cosine[0].unflatten(-1, (1, 2, -1))
        self.sine = sine[0].unflatten(-1, (1, 2, -1)) * sign

    @torch.inference_mode()
    def __call__(self, ids: Tensor, positions: Tensor, slots: Slots) -> Tensor:
        """``[R, D]`` states of the last layer, after its norm.

        Args:
            ids: ``[R]`` tokens.
            positions: ``[R]`` their positions.
            slots: the cache, one slot a row.
        """
        rows, size, turned = len(ids), self.size, (self.queries + self.shared) * self.size
        cosine, sine = self.cosine[positions], self.sine[positions]
        states = embedding(ids, self.embeddings)
        mask = slots.mask(states.dtype)
        for i, layer in enumerate(self.layers):
            # [R, queries, keys and values], of which the first two are turned in place.
            heads = layer.heads(layer.attention_norm(states))
            if layer.head_norm is not None:
                both = heads[:, :turned]
                both.copy_(layer.head_norm(both.view(rows, -1, size)).view(rows, -1))
            halves = heads[:, :turned].view(rows, -1, 2, size // 2)
            other = halves.flip(2).mul_(sine)
            halves.mul_(cosine).add_(other)
            keys, values = slots.store(heads[:, self.queries * size :], i)
            # Query heads that share a key head stand in the place of a longer query.
            query = heads[:, : self.queries * size].view(rows, self.shared, -1, size)
            found = scaled_dot_product_attention(
                query, keys.to(query.dtype), values.to(query.dtype), attn_mask=mask, scale=layer.scaling
            )
            states = layer.output(states, found.reshape(rows, -1))
            states = layer.down(states, layer.unit(layer.feed_norm(states)))
        return self.norm(states)


def lean_decoder(trunk: Any, length: int) -> LeanDecoder | None:
    """The step for a model's decoder, or ``None`` where its own forward has to do it.

    Args:
        trunk: the decoder of a model of transformers, its weights whole.
        length: longest text.
    """
    rotation = getattr(getattr(trunk, "rotary_emb", None), "rope_type", None)
    if type(trunk).__name__ not in _KINDS or rotation not in _FIXED_ROTATIONS:
        return None
    # An adapter on the embeddings, or somebody who listens: the modules have to be called.
    if type(trunk.embed_tokens) is not nn.Embedding or any(map(_is_heard, trunk.modules())):
        return None
    # Autocast chooses the precision of each product by what is called; the modules know.
    if torch.is_autocast_enabled(trunk.embed_tokens.weight.device.type):
        return None
    return LeanDecoder(trunk, length)


def same_states(lean: Tensor, own: Tensor) -> bool:
    """Whether the lean step gives the states that the decoder's own forward gives.

    It is written after the library's code, which may change: so each decoder is asked once.

    Args:
        lean: ``[R, D]`` states of the lean step.
        own: ``[R, D]`` of the decoder's.
    """
    allowed = 1e-3 if own.dtype in (torch.float32, torch.float64) else 5e-2
    # By the norm of each row: a few outlying features would allow anything of all the others.
    norms = torch.linalg.vector_norm(own.float(), dim=-1).clamp_min(torch.finfo(torch.float32).tiny)
    difference = (torch.linalg.vector_norm(lean.float() - own.float(), dim=-1) / norms).max().item()
    agrees = difference <= allowed
    if not agrees:
        logger.warning(
            "the lean decoding step differs from the model's own by %.1e of its norm: it is not used, and "
            "completions take longer; please report the version of transformers",
            difference,
        )
    return agrees


def _is_heard(module: nn.Module) -> bool:
    hooks: list[Any] = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    owners = [str(getattr(getattr(hook, "func", hook), "__module__", "")) for hook in hooks]
    # The library's own record states for who asks for them, and stay for good once somebody has.
    return any(not owner.startswith("transformers.") for owner in owners)


def _layer(layer: Any, config: Any) -> Layer:
    attention, feed, eps = layer.self_attn, layer.mlp, config.rms_norm_eps
    head_norm = None
    if hasattr(attention, "q_norm"):
        counts = (
            (attention.q_norm, config.num_attention_heads),
            (attention.k_norm, config.num_key_value_heads),
        )
        head_norm = Norm(torch.cat([norm.weight.expand(count, -1) for norm, count in counts]), eps)
    return Layer(
        attention_norm=Norm(layer.input_layernorm.weight, eps),
        heads=joined([attention.q_proj, attention.k_proj, attention.v_proj]),
        head_norm=head_norm,
        output=addition(attention.o_proj),
        feed_norm=Norm(layer.post_attention_layernorm.weight, eps),
        unit=gated(feed.gate_proj, feed.up_proj, feed.act_fn),
        down=addition(feed.down_proj),
        scaling=attention.scaling,
    )
