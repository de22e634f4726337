"""What flows between the parts: a forest of prompts and completions.

Shapes, here and everywhere: ``P`` prompts, ``C`` completions, ``N`` completion tokens of the
whole batch one after another, ``V`` vocabulary.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from itertools import accumulate
from typing import Any, Literal

import torch
from torch import Tensor

from lit_align.functional.segments import segment_sum


@dataclass(frozen=True)
class Forest:
    """A ragged batch: prompts, and completions that each point at their prompt.

    A supervised row is one prompt with one completion, a preference pair one prompt with two
    (chosen first), a group one prompt with ``G``. A prompt may be empty. Nothing is padded.
    Lengths live on the host, so that no layout has to ask the device for them.

    Attributes:
        prompt_ids: ``[sum of prompt lengths]`` token ids, one prompt after another.
        prompt_lengths: ``P`` lengths; 0 is allowed.
        completion_ids: ``[N]`` token ids, one completion after another.
        completion_lengths: ``C`` lengths; 0 is allowed (a completion that was cut away).
        parents: ``C`` prompt indices, in ascending order: the completions of a prompt are neighbours.
        weights: ``[N]`` float32 weight of each completion token in the loss, 0 where it is context
            (user turns, tool output) and 1 elsewhere, unless the data says otherwise. Built from
            positions, never from ``ids == pad``. The first token of a completion whose prompt is
            empty has nothing to be predicted from, and weighs 0.
        rows: ``P`` row numbers in the data set, for error messages and for the order of results.
        prompt_columns: per-prompt tensors ``[P, ...]`` (``margin``, ``label``).
        completion_columns: per-completion tensors ``[C, ...]``.
        token_columns: per-token tensors ``[N, ...]`` (``reference_logps``).
        records: ``P`` rows of the data as they were read, for reward functions (an answer, a topic), or
            empty where nobody asks for them.
    """

    prompt_ids: Tensor
    prompt_lengths: tuple[int, ...]
    completion_ids: Tensor
    completion_lengths: tuple[int, ...]
    parents: tuple[int, ...]
    weights: Tensor
    rows: tuple[int, ...]
    prompt_columns: dict[str, Tensor] = field(default_factory=dict)
    completion_columns: dict[str, Tensor] = field(default_factory=dict)
    token_columns: dict[str, Tensor] = field(default_factory=dict)
    records: tuple[Mapping[str, Any], ...] = ()

    @classmethod
    def from_lists(
        cls,
        prompts: Sequence[Sequence[int]],
        completions: Sequence[Sequence[Sequence[int]]],
        weights: Sequence[Sequence[Sequence[float]]] | None = None,
        rows: Sequence[int] | None = None,
        prompt_columns: dict[str, Tensor] | None = None,
        records: Sequence[Mapping[str, Any]] = (),
    ) -> "Forest":
        """Build a forest from nested lists of token ids.

        Args:
            prompts: ``P`` lists of ids.
            completions: for each prompt, its completions.
            weights: for each completion, a weight per token; all 1 where it is ``None``.
            rows: row numbers; ``0 .. P-1`` where they are ``None``.
            prompt_columns: per-prompt tensors ``[P, ...]``.
            records: the row of each prompt as it was read, or none.

        >>> pair = Forest.from_lists([[5, 6]], [[[7, 8, 2], [9, 2]]])
        >>> pair.completion_lengths, pair.parents, pair.weights.tolist()
        ((3, 2), (0, 0), [1.0, 1.0, 1.0, 1.0, 1.0])
        """
        if len(prompts) != len(completions):
            raise ValueError(f"{len(prompts)} prompts but completions for {len(completions)}")
        if records and len(records) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts but {len(records)} records")
        flat = [ids for group in completions for ids in group]
        parents = tuple(i for i, group in enumerate(completions) for _ in group)
        if weights is None:
            mass = [[1.0] * len(ids) for ids in flat]
        else:
            mass = [list(w) for group in weights for w in group]
            if [len(w) for w in mass] != [len(ids) for ids in flat]:
                raise ValueError("weights must have one number per completion token")
        for parent, w in zip(parents, mass, strict=True):
            if w and not prompts[parent]:
                w[0] = 0.0
        return cls(
            prompt_ids=torch.tensor([t for ids in prompts for t in ids], dtype=torch.long),
            prompt_lengths=tuple(len(ids) for ids in prompts),
            completion_ids=torch.tensor([t for ids in flat for t in ids], dtype=torch.long),
            completion_lengths=tuple(len(ids) for ids in flat),
            parents=parents,
            weights=torch.tensor([w for one in mass for w in one], dtype=torch.float32),
            rows=tuple(rows) if rows is not None else tuple(range(len(prompts))),
            prompt_columns=prompt_columns or {},
            records=tuple(records),
        )

    @property
    def num_prompts(self) -> int:
        """``P``."""
        return len(self.prompt_lengths)

    @property
    def num_completions(self) -> int:
        """``C``."""
        return len(self.completion_lengths)

    @property
    def num_tokens(self) -> int:
        """Tokens a straightforward method would process: each completion with its prompt."""
        return sum(self.completion_lengths) + sum(self.prompt_lengths[p] for p in self.parents)

    @property
    def device(self) -> torch.device:
        """Where the tokens are."""
        return self.completion_ids.device

    @cached_property
    def sequence(self) -> Tensor:
        """``[N]`` index of the completion each token belongs to."""
        lengths = torch.tensor(self.completion_lengths, device=self.device)
        count = torch.arange(self.num_completions, device=self.device)
        return torch.repeat_interleave(count, lengths, output_size=len(self.completion_ids))

    @cached_property
    def prompt_offsets(self) -> tuple[int, ...]:
        """``P + 1`` starts of the prompts in ``prompt_ids``, and their end."""
        return (0, *accumulate(self.prompt_lengths))

    @cached_property
    def completion_offsets(self) -> tuple[int, ...]:
        """``C + 1`` starts of the completions in ``completion_ids``, and their end."""
        return (0, *accumulate(self.completion_lengths))

    def sum_per_completion(self, values: Tensor) -> Tensor:
        """Sum ``[N]`` token values into ``[C]``."""
        return segment_sum(values, self.sequence, self.num_completions)

    def with_token_column(self, name: str, values: Tensor) -> "Forest":
        """The same batch with one more ``[N]`` column."""
        if len(values) != len(self.completion_ids):
            raise ValueError(f"{name} has {len(values)} values for {len(self.completion_ids)} tokens")
        return replace(self, token_columns={**self.token_columns, name: values})

    def select(self, prompts: Sequence[int]) -> "Forest":
        """The sub-forest of the given prompts, in the given order, columns included."""
        po, co = self.prompt_offsets, self.completion_offsets
        children: dict[int, list[int]] = {p: [] for p in prompts}
        for c, parent in enumerate(self.parents):
            if parent in children:
                children[parent].append(c)
        chosen = [c for p in prompts for c in children[p]]
        token = _ranges([(co[c], co[c + 1]) for c in chosen], self.device)
        prompt_index = torch.tensor(list(prompts), dtype=torch.long, device=self.device)
        completion_index = torch.tensor(chosen, dtype=torch.long, device=self.device)
        return Forest(
            prompt_ids=self.prompt_ids[_ranges([(po[p], po[p + 1]) for p in prompts], self.device)],
            prompt_lengths=tuple(self.prompt_lengths[p] for p in prompts),
            completion_ids=self.completion_ids[token],
            completion_lengths=tuple(self.completion_lengths[c] for c in chosen),
            parents=tuple(i for i, p in enumerate(prompts) for _ in children[p]),
            weights=self.weights[token],
            rows=tuple(self.rows[p] for p in prompts),
            prompt_columns={k: v[prompt_index] for k, v in self.prompt_columns.items()},
            completion_columns={k: v[completion_index] for k, v in self.completion_columns.items()},
            token_columns={k: v[token] for k, v in self.token_columns.items()},
            records=tuple(self.records[p] for p in prompts) if self.records else (),
        )

    def sequences(self) -> Iterator[tuple[list[int], list[int], list[float]]]:
        """Each completion as ``(prompt ids, completion ids, weights)``, as plain lists."""
        prompts, tokens, weights = (t.tolist() for t in (self.prompt_ids, self.completion_ids, self.weights))
        for c, parent in enumerate(self.parents):
            a, b = self.prompt_offsets[parent], self.prompt_offsets[parent + 1]
            x, y = self.completion_offsets[c], self.completion_offsets[c + 1]
            yield prompts[a:b], tokens[x:y], weights[x:y]

    def padded(self, pad_id: int, side: Literal["left", "right"] = "right") -> dict[str, Tensor]:
        """The batch as rectangles, for code that wants them.

        Returns:
            ``input_ids``, ``attention_mask`` and ``labels`` (-100 where nothing is to be learned),
            each ``[C, longest]``.
        """
        rows = list(self.sequences())
        width = max((len(p) + len(c) for p, c, _ in rows), default=0)
        ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
        mask = torch.zeros((len(rows), width), dtype=torch.long)
        labels = torch.full((len(rows), width), -100, dtype=torch.long)
        for i, (prompt, completion, weights) in enumerate(rows):
            length = len(prompt) + len(completion)
            start = width - length if side == "left" else 0
            ids[i, start : start + length] = torch.tensor(prompt + completion, dtype=torch.long)
            mask[i, start : start + length] = 1
            targets = [t if w else -100 for t, w in zip(completion, weights, strict=True)]
            labels[i, start + len(prompt) : start + length] = torch.tensor(targets, dtype=torch.long)
        return {
            "input_ids": ids.to(self.device),
            "attention_mask": mask.to(self.device),
            "labels": labels.to(self.device),
        }

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Forest":
        """The batch on another device; Lightning calls this."""
        return self._map(lambda t: t.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Forest":
        """The batch in page-locked memory; the data loader calls this."""
        return self._map(Tensor.pin_memory)

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Forest":
        values: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, Tensor):
                value = change(value)
            elif isinstance(value, dict):
                value = {k: change(v) for k, v in value.items()}
            values[item.name] = value
        return Forest(**values)


def _ranges(spans: Sequence[tuple[int, int]], device: torch.device) -> Tensor:
    return torch.tensor([i for a, b in spans for i in range(a, b)], dtype=torch.long, device=device)
