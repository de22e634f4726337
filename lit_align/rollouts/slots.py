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
    Each layer has ``[rows, length, key-value heads, head size]`` of both, so that a new token is a block.

    Args:
        rows: how many slots.
        length: longest prompt with its completion.
        device: where the model is.
    """

    def __init__(self, rows: int, length: int, device: torch.device) -> None:
        self.rows, self.length, self.device = rows, length, device
        self.lengths: list[int] = []
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._first = torch.arange(rows, device=device) * length
        self._place = torch.arange(length, device=device)
        self._new = self._first[:0]
        self._longest = 0
        self._mask: Tensor | None = None

    def fill(self, prompt: PromptStates, count: int) -> None:
        """Start ``count`` completions of a prompt, in the next free slots."""
        if not self._keys:
            self._keys = [self._room(key) for key in prompt.keys]
            self._values = [self._room(value) for value in prompt.values]
        start, length = len(self.lengths), prompt.keys[0].shape[1]
        for stored, given in zip(self._keys + self._values, prompt.keys + prompt.values, strict=True):
            stored[start : start + count, :length] = given.transpose(0, 1)
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
        return self.store(key[:, :, 0], value[:, :, 0], layer)

    def store(self, key: Tensor, value: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Store a token's keys and values.

        Args:
            key: ``[rows, heads, size]``.
            value: as ``key``.
            layer: which layer's.

        Returns:
            ``[rows, heads, longest, size]`` keys and values of the slots in use.
        """
        found = []
        for stored, given in ((self._keys[layer], key), (self._values[layer], value)):
            stored.flatten(0, 1).index_copy_(0, self._new, given.to(stored.dtype))
            found.append(stored[: len(given), : self._longest].transpose(1, 2))
        return found[0], found[1]

    def get_seq_length(self, *_: Any) -> int:
        """Tokens before these, in the longest slot."""
        return self._longest - 1

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
        """Attention of one new token a slot.

        Query heads that share a key head stand in the place of a longer query, so that no key is repeated.
        """
        rows, heads, _, size = query.shape
        shared = key.shape[1]
        mask = self._mask
        if mask is not None and mask.dtype == torch.bool:
            # Once for all layers.
            mask = self._mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(~mask, -torch.inf)
        grouped = query.reshape(rows, shared, heads // shared, size)
        found = scaled_dot_product_attention(
            grouped, key.to(query.dtype), value.to(query.dtype), attn_mask=mask, scale=scaling
        )
        return found.reshape(rows, 1, heads, -1)

    def _room(self, given: Tensor) -> Tensor:
        heads, _, size = given.shape
        return given.new_zeros((self.rows, self.length, heads, size))

    def _move(self, source: int, target: int) -> None:
        length = self.lengths[source]
        for stored in (*self._keys, *self._values):
            stored[target, :length] = stored[source, :length]
