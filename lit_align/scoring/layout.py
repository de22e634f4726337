"""The flat layout: a whole forest as one row without padding, each prompt once.

A tree of the forest is its prompt and the completions behind it. In the row stand, tree after tree,
the prompt with its first completion (one *piece*, plain causal attention) and the other completions
(a piece each, which also sees the prompt).
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lit_align.batches import Forest


class Rows(NamedTuple):
    """Places of a row that are asked for, as one stretch of each piece.

    Attributes:
        kept: ``[K]`` the places, ascending.
        stretches: for each piece, the first place and the one behind the last, counted in the piece.
        found: ``[M]`` where among the ``K`` each place stands that was asked for.
    """

    kept: Tensor
    stretches: tuple[tuple[int, int], ...]
    found: Tensor


@dataclass(frozen=True)
class FlatLayout:
    """Where everything stands in the row of ``T`` tokens.

    Attributes:
        input_ids: ``[1, T]``.
        position_ids: ``[1, T]`` place of a token in its own document (prompt + completion).
        pieces: lengths of the pieces, which sum to ``T``.
        stems: for each piece, how many tokens of the latest stem it also sees: the length of the prompt
            for a branch, -1 for a piece that starts a tree.
        prompts: for each piece that starts a tree, the length of its prompt; 0 for the others.
        scored: ``[M]`` index among the completion tokens of those that weigh something.
        predictors: ``[M]`` place in the row of the token that predicts each of them.
        last: ``[C]`` place in the row of the last token of each document.
        rows: the places whose states are wanted from the last layer; ``None`` for all.
    """

    input_ids: Tensor
    position_ids: Tensor
    pieces: tuple[int, ...]
    stems: tuple[int, ...]
    prompts: tuple[int, ...]
    scored: Tensor
    predictors: Tensor
    last: Tensor
    rows: Rows | None = None
    _made: dict[Any, Any] = field(default_factory=dict, repr=False)

    def made(self, key: Any, make: Callable[[], Any]) -> Any:
        """What ``make`` gives, made once for all layers."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def branch_mask(self, own: int, stem: int) -> Tensor:
        """``[own, stem + own]`` mask of a branch: all of the stem, and its own past."""
        shape, device = (own, stem + own), self.input_ids.device
        mask: Tensor = self.made(shape, lambda: torch.ones(shape, dtype=torch.bool, device=device).tril(stem))
        return mask

    def at(self, places: Tensor) -> "FlatLayout":
        """The same layout, with the places ``[M]`` whose states are wanted."""
        bounds = torch.tensor((0, *accumulate(self.pieces)))
        host = places.cpu()
        piece = torch.searchsorted(bounds, host, right=True) - 1
        inside = host - bounds[piece]
        nothing = torch.zeros(len(self.pieces), dtype=torch.long)
        low = nothing.scatter_reduce(0, piece, inside, "amin", include_self=False)
        high = nothing.scatter_reduce(0, piece, inside + 1, "amax", include_self=False)
        stretches = tuple(zip(low.tolist(), high.tolist(), strict=True))
        parts = [torch.arange(s + a, s + b) for s, (a, b) in zip(bounds.tolist(), stretches, strict=False)]
        kept = torch.cat(parts)
        found = torch.searchsorted(kept, host)
        device = places.device
        rows = Rows(kept.to(device), stretches, found.to(device))
        return replace(self, rows=rows, _made={})

    @property
    def document_lengths(self) -> Tensor:
        """``[1, T]`` length of the document that each token belongs to (a prompt: its first)."""
        lengths = [n if stem < 0 else n + stem for n, stem in zip(self.pieces, self.stems, strict=True)]
        each = torch.tensor(lengths, device=self.input_ids.device)
        pieces = torch.tensor(self.pieces, device=self.input_ids.device)
        return torch.repeat_interleave(each, pieces)[None]


def flat_layout(batch: Forest) -> FlatLayout:
    """Lay a forest out in one row."""
    po, co = batch.prompt_offsets, batch.completion_offsets
    children: list[list[int]] = [[] for _ in batch.prompt_lengths]
    for c, parent in enumerate(batch.parents):
        children[parent].append(c)
    parts: list[Tensor] = []
    positions: list[Tensor] = []
    pieces: list[int] = []
    stems: list[int] = []
    prompts: list[int] = []
    starts = [0] * batch.num_completions  # where in the row the completion's own tokens start
    ends_of_prompt = [0] * batch.num_prompts
    place = 0
    for p, group in enumerate(children):
        length = batch.prompt_lengths[p]
        parts.append(batch.prompt_ids[po[p] : po[p + 1]])
        positions.append(torch.arange(length))
        place += length
        ends_of_prompt[p] = place - 1
        for i, c in enumerate(group):
            own = batch.completion_lengths[c]
            starts[c] = place
            parts.append(batch.completion_ids[co[c] : co[c + 1]])
            positions.append(torch.arange(length, length + own))
            place += own
            if i == 0 or own:
                pieces.append(own + (length if i == 0 else 0))
                stems.append(length if i else -1)
                prompts.append(0 if i else length)
    scored, predictors, last = _scored(batch, starts, ends_of_prompt)
    return FlatLayout(
        input_ids=torch.cat(parts)[None],
        position_ids=torch.cat(positions).to(batch.device)[None],
        pieces=tuple(pieces),
        stems=tuple(stems),
        prompts=tuple(prompts),
        scored=scored,
        predictors=predictors,
        last=last,
    )


def _scored(batch: Forest, starts: list[int], ends_of_prompt: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    scored = batch.weights.nonzero().squeeze(1)
    # A token is predicted by its neighbour in the row, but the first of a completion by the prompt's last.
    offsets = torch.tensor(batch.completion_offsets[:-1])
    begin = torch.tensor(starts, dtype=torch.long)
    ends = torch.tensor([ends_of_prompt[p] for p in batch.parents], dtype=torch.long)
    host = torch.stack((begin - offsets - 1, offsets, ends)).to(batch.device)
    owner = batch.sequence[scored]
    shift, first, end = host[:, owner]
    predictors = torch.where(scored == first, end, scored + shift)
    lengths = torch.tensor(batch.completion_lengths)
    last = torch.where(lengths > 0, begin + lengths - 1, ends)
    return scored, predictors, last.to(batch.device)
