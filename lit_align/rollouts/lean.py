"""A decoding step of Llama, Mistral, Qwen2 and Qwen3 with nothing but its tensor operations.

A step for a few rows does little arithmetic, and most of its time goes into the calls around it: modules,
hooks, keyword arguments, casts to the type a tensor already has. The same operations on the same weights,
written out, take a third of the time on a CPU. Layers that are not plain matrices (quantised ones, adapters
with a forward of their own) are called as they are; nothing is merged and nothing is copied.
"""

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, linear, rms_norm

from lit_align.rollouts.slots import Slots

_KINDS = {"LlamaModel", "MistralModel", "Qwen2Model", "Qwen3Model"}
#: Rotations that depend on the position alone, not on how long the text is.
_FIXED_ROTATIONS = {"default", "linear", "llama3", "yarn"}

Product = Callable[[Tensor], Tensor]

logger = logging.getLogger(__name__)


class Layer(NamedTuple):
    """What a layer is made of."""

    attention_norm: Tensor
    query: Product
    key: Product
    value: Product
    query_norm: Tensor | None
    key_norm: Tensor | None
    output: Product
    feed_norm: Tensor
    gate: Product
    up: Product
    down: Product
    activation: Product
    scaling: float


class LeanDecoder:
    """One token a row through a decoder.

    Args:
        trunk: the decoder, one of those that :func:`lean_decoder` takes.
        length: longest text.
    """

    def __init__(self, trunk: Any, length: int) -> None:
        self.embeddings, self.norm = trunk.embed_tokens.weight, trunk.norm.weight
        self.eps = trunk.config.rms_norm_eps
        self.layers = [_layer(layer) for layer in trunk.layers]
        self.size = trunk.layers[0].self_attn.head_dim
        positions = torch.arange(length, device=self.embeddings.device)[None]
        cosine, sine = trunk.rotary_emb(self.embeddings[:1], positions)
        # The first half of a head turns the other way: its sign is the sine's.
        half = torch.ones_like(sine[0])
        half[:, : self.size // 2] = -1
        self.cosine, self.sine = cosine[0][:, None], (sine[0] * half)[:, None]

    def __call__(self, ids: Tensor, positions: Tensor, slots: Slots) -> Tensor:
        """``[R, D]`` states of the last layer, after its norm.

        Args:
            ids: ``[R]`` tokens.
            positions: ``[R]`` their positions.
            slots: the cache, one slot a row.
        """
        rows, size = len(ids), self.size
        cosine, sine = self.cosine[positions], self.sine[positions]
        states = embedding(ids, self.embeddings)
        width = states.shape[-1:]
        for i, layer in enumerate(self.layers):
            normed = rms_norm(states, width, layer.attention_norm, self.eps)
            query, key = layer.query(normed).view(rows, -1, size), layer.key(normed).view(rows, -1, size)
            if layer.query_norm is not None and layer.key_norm is not None:
                query = rms_norm(query, (size,), layer.query_norm, self.eps)
                key = rms_norm(key, (size,), layer.key_norm, self.eps)
            query, key = _turn(query, cosine, sine), _turn(key, cosine, sine)
            keys, values = slots.store(key, layer.value(normed).view(rows, -1, size), i)
            found = slots.attend(query[:, :, None], keys, values, layer.scaling)
            states = states + layer.output(found.view(rows, -1))
            normed = rms_norm(states, width, layer.feed_norm, self.eps)
            states = states + layer.down(layer.activation(layer.gate(normed)) * layer.up(normed))
        return rms_norm(states, width, self.norm, self.eps)


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
    difference = (lean - own).abs().max().item()
    agrees = difference <= allowed * max(own.abs().max().item(), 1.0)
    if not agrees:
        logger.warning(
            "the lean decoding step differs from the model's own by %.1e: it is not used, and completions "
            "take longer; please report the version of transformers",
            difference,
        )
    return agrees


def _is_heard(module: nn.Module) -> bool:
    hooks: list[Any] = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    owners = [str(getattr(getattr(hook, "func", hook), "__module__", "")) for hook in hooks]
    # The library's own record states for who asks for them, and stay for good once somebody has.
    return any(not owner.startswith("transformers.") for owner in owners)


def _layer(layer: Any) -> Layer:
    attention, feed = layer.self_attn, layer.mlp
    return Layer(
        attention_norm=layer.input_layernorm.weight,
        query=_product(attention.q_proj),
        key=_product(attention.k_proj),
        value=_product(attention.v_proj),
        query_norm=attention.q_norm.weight if hasattr(attention, "q_norm") else None,
        key_norm=attention.k_norm.weight if hasattr(attention, "k_norm") else None,
        output=_product(attention.o_proj),
        feed_norm=layer.post_attention_layernorm.weight,
        gate=_product(feed.gate_proj),
        up=_product(feed.up_proj),
        down=_product(feed.down_proj),
        activation=feed.act_fn,
        scaling=attention.scaling,
    )


def _product(module: Any) -> Product:
    if type(module) is not nn.Linear:
        return _adapted(module) or module
    weight, bias = module.weight, module.bias
    return lambda states: linear(states, weight, bias)


def _adapted(module: Any) -> Product | None:
    """A matrix with one LoRA beside it; ``None`` for anything else."""
    names = getattr(module, "active_adapters", None)
    if names is None or len(names) != 1 or not hasattr(module, "lora_A"):
        return None
    name = names[0]
    if (
        type(module.base_layer) is not nn.Linear
        or module.disable_adapters
        or module.merged
        or name not in module.lora_A
        or name in getattr(module, "lora_variant", {})
        or module.lora_A[name].weight.dtype != module.base_layer.weight.dtype
        or module.lora_B[name].bias is not None
    ):
        return None
    weight, bias = module.base_layer.weight, module.base_layer.bias
    down, up, scaling = module.lora_A[name].weight, module.lora_B[name].weight, module.scaling[name]
    return lambda states: linear(states, weight, bias).add_(linear(linear(states, down), up), alpha=scaling)


def _turn(heads: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    return torch.addcmul(heads * cosine, heads.roll(heads.shape[-1] // 2, -1), sine)
