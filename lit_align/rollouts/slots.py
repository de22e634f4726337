"""A static key-value cache: a slot for each completion that is being written, side by side."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


class PromptStates(NamedTuple):
    """What a prompt leaves behind once it has been read.

    Attributes:
        keys: for each layer ``[key-value heads, T, head size]``.
        values: as ``keys``.
        hidden: ``[D]`` state of the last layer in its last token, after the norm.
    """

    keys: list[Tensor]
    values: list[Tensor]
    hidden: Tensor


class PromptReader:
    """Takes the place of a model's cache while prompts are read, and keeps what it is given."""

    def __init__(self) -> None:
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}

    def update(self, key: Tensor, value: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Keep the keys and values ``[1, heads, T, size]`` of a layer, and hand them on."""
        self.keys[layer], self.values[layer] = key, value
        return key, value

    def get_seq_length(self, *_: Any) -> int:
        """Tokens before these."""
        return 0

    def states(self, start: int, end: int, hidden: Tensor) -> PromptStates:
        """Of the prompt in a part of the row."""
        keys, values = (
            [kept[layer][0, :, start:end] for layer in sorted(kept)] for kept in (self.keys, self.values)
        )
        return PromptStates(keys, values, hidden)


class Slots:
    """Takes the place of a model's cache while completions are written, a token each at a time.

    Keys and values lie in place: a slot's row begins with its prompt. The slots in use are the first ones.
    Each layer is ``[rows, length, width]``, a token's keys and values side by side, so that a new token is
    one block of memory.

    Args:
        rows: how many slots.
        length: longest prompt with its completion.
        device: where the model is.
    """

    def __init__(self, rows: int, length: int, device: torch.device) -> None:
        self.rows, self.length, self.device = rows, length, device
        self.lengths: list[int] = []
        self._layers: list[Tensor] = []
        #: ``[key-value heads, head size]`` of the keys and of the values of each layer.
        self._shapes: list[tuple[tuple[int, int], tuple[int, int]]] = []
        self._first = torch.arange(rows, device=device) * length
        self._place = torch.arange(length, device=device)
        self._new = self._first[:0]
        self._longest = 0
        self._mask: Tensor | None = None

    def fill(self, prompt: PromptStates, count: int) -> None:
        """Start ``count`` completions of a prompt, in the next free slots."""
        if not self._layers:
            for key, value in zip(prompt.keys, prompt.values, strict=True):
                shapes = ((key.shape[0], key.shape[2]), (value.shape[0], value.shape[2]))
                width = sum(heads * size for heads, size in shapes)
                self._shapes.append(shapes)
                self._layers.append(key.new_zeros((self.rows, self.length, width)))
        start, length = len(self.lengths), prompt.keys[0].shape[1]
        for layer, key, value in zip(self._layers, prompt.keys, prompt.values, strict=True):
            both = (given.transpose(0, 1).flatten(1) for given in (key, value))
            layer[start : start + count, :length] = torch.cat(tuple(both), 1)
        self.lengths += [length] * count

    def keep(self, alive: Sequence[int]) -> list[int]:
        """Go on with some of the slots; holes are filled from the end.

        Args:
            alive: slots, ascending.

        Returns:
            Which of the old slots each of the first slots now is.
        """
        count = len(alive)
        order = list(range(count))
        late = [slot for slot in alive if slot >= count]
        here = set(alive)
        for hole in range(count):
            if hole not in here:
                order[hole] = late.pop()
                self._move(order[hole], hole)
        self.lengths = [self.lengths[slot] for slot in order]
        return order

    def advance(self) -> Tensor:
        """Make room for the next token of every slot in use.

        Returns:
            ``[rows]`` its position.
        """
        now = torch.tensor(self.lengths, device=self.device)
        self._new, self._longest = self._first[: len(now)] + now, max(self.lengths) + 1
        self._mask = None
        if min(self.lengths) + 1 < self._longest:
            self._mask = (self._place[: self._longest] <= now[:, None])[:, None, None]
        self.lengths = [length + 1 for length in self.lengths]
        return now

    def update(self, key: Tensor, value: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Store a token's keys and values ``[rows, heads, 1, size]``; return those of the whole slots."""
        return self.store(torch.cat((key.flatten(1), value.flatten(1)), 1), layer)

    def store(self, both: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Store a token's keys and values.

        Args:
            both: ``[rows, width]`` its keys, head by head, and then its values.
            layer: which layer's.

        Returns:
            ``[rows, heads, longest, size]`` keys and values of the slots in use.
        """
        stored, rows = self._layers[layer], len(both)
        width = stored.shape[2]
        stored.view(-1, width).index_copy_(0, self._new, both.to(stored.dtype))
        (heads, size), (value_heads, value_size) = self._shapes[layer]
        # One call in the place of a slice, a view and two permutations, which take longer than they say.
        keys = stored.as_strided((rows, heads, self._longest, size), (self.length * width, size, width, 1), 0)
        values = stored.as_strided(
            (rows, value_heads, self._longest, value_size),
            (self.length * width, value_size, width, 1),
            heads * size,
        )
        return keys, values

    def get_seq_length(self, *_: Any) -> int:
        """Tokens before these, in the longest slot."""
        return self._longest - 1

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
        """Attention of one new token a slot.

        Query heads that share a key head stand in the place of a longer query, so that no key is repeated.
        """
        rows, heads, _, size = query.shape
        shared = key.shape[1]
        grouped = query.reshape(rows, shared, heads // shared, size)
        found = scaled_dot_product_attention(
            grouped,
            key.to(query.dtype),
            value.to(query.dtype),
            attn_mask=self.mask(query.dtype),
            scale=scaling,
        )
        return found.reshape(rows, 1, heads, -1)

    def mask(self, dtype: torch.dtype) -> Tensor | None:
        """``[rows, 1, 1, longest]`` what is added to the products of this step: 0, or minus infinity."""
        mask = self._mask
        if mask is not None and mask.dtype == torch.bool:
            # Once for all layers.
            mask = self._mask = torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, -torch.inf)
        return mask

    def _move(self, source: int, target: int) -> None:
        length = self.lengths[source]
        for layer in self._layers:
            layer[target, :length] = layer[source, :length]
