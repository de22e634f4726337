"""What has been written so far: the completions of one request while they grow."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lit_align.batches import Forest
from lit_align.rollouts.sampling import Sampling, choose, length_limits, random_streams
from lit_align.rollouts.stopping import StopTexts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Transcript:
    """Chooses and keeps the tokens of ``C`` completions, any of them at a time.

    Args:
        prompts: ``P`` lists of token ids.
        completions: ``G`` of each prompt; completion ``c`` belongs to prompt ``c // G``.
        sampling: how.
        seeds: ``C``.
        ends: the tokens that end a completion.
        tokenizer: for stop texts.
        device: where logits come from.
        values: whether values are kept.
    """

    def __init__(
        self,
        prompts: Sequence[Sequence[int]],
        completions: int,
        sampling: Sampling,
        seeds: Sequence[int],
        ends: frozenset[int],
        tokenizer: "PreTrainedTokenizerBase | None",
        device: torch.device,
        values: bool,
    ) -> None:
        longest = sampling.max_new_tokens
        # The first number is the length's, whether it is asked for or not: no option shifts the others.
        streams = random_streams(seeds, longest + 1)
        self.prompts, self.completions, self.sampling = prompts, completions, sampling
        self.limits: list[int] = length_limits(streams[:, 0], sampling).tolist()
        self.ids: list[list[int]] = [[] for _ in seeds]
        self.running = [True] * len(seeds)
        self.finished = [False] * len(seeds)
        self._ends, self._end_ids = ends, torch.tensor(sorted(ends), dtype=torch.long, device=device)
        self._texts = StopTexts(sampling.stop, tokenizer)
        self._uniform = streams[:, 1:].to(device)
        self._logps = torch.zeros((len(seeds), longest), device=device)
        self._values = torch.zeros((len(seeds), longest), device=device) if values else None
        self._seen: Tensor | None = None

    def write(self, rows: Sequence[int], logits: Tensor, values: Tensor | None = None) -> Tensor:
        """Choose the next token of some completions.

        Args:
            rows: ``R`` completions that are running.
            logits: ``[R, V]``.
            values: ``[R]``, of the states that the logits come from.

        Returns:
            ``[R]`` tokens. Afterwards ``running`` says who goes on.
        """
        steps = [len(self.ids[c]) for c in rows]
        # One transfer for both.
        where, step = torch.tensor([list(rows), steps], device=logits.device)
        chosen, logps = choose(
            logits,
            self._uniform[where, step],
            self.sampling,
            self._tokens_seen(where, logits),
            self._too_early(steps, logits),
        )
        self._logps[where, step] = logps.to(self._logps.dtype)
        if self._values is not None and values is not None:
            self._values[where, step] = values.to(self._values.dtype)
        if self._seen is not None:
            self._seen[where, chosen] = True
        for c, token in zip(rows, chosen.tolist(), strict=True):
            self._append(c, token)
        return chosen

    def forest(self) -> Forest:
        """What was written, as a generator returns it."""
        groups = [self.ids[a : a + self.completions] for a in range(0, len(self.ids), self.completions)]
        forest = Forest.from_lists(self.prompts, groups).to(self._logps.device)
        lengths = torch.tensor(forest.completion_lengths, device=self._logps.device)
        written = torch.arange(self._logps.shape[1], device=self._logps.device) < lengths[:, None]
        columns = {"old_logps": self._logps[written]}
        if self._values is not None:
            columns["values"] = self._values[written]
        finished = torch.tensor(self.finished, device=self._logps.device)
        return replace(forest, token_columns=columns, completion_columns={"finished": finished})

    def _append(self, c: int, token: int) -> None:
        ids = self.ids[c]
        ids.append(token)
        if len(ids) >= max(self.sampling.min_new_tokens, 1) and (
            token in self._ends or self._texts.ends(ids)
        ):
            self.finished[c] = True
        self.running[c] = not self.finished[c] and len(ids) < self.limits[c]

    def _tokens_seen(self, where: Tensor, logits: Tensor) -> Tensor | None:
        if self.sampling.repetition_penalty == 1:
            return None
        if self._seen is None:
            self._seen = torch.zeros((len(self.ids), logits.shape[1]), dtype=torch.bool, device=logits.device)
            for p, prompt in enumerate(self.prompts):
                group = slice(p * self.completions, (p + 1) * self.completions)
                self._seen[group, torch.tensor(list(prompt), device=logits.device)] = True
        return self._seen[where]

    def _too_early(self, steps: list[int], logits: Tensor) -> Tensor | None:
        early = [step < self.sampling.min_new_tokens for step in steps]
        if not any(early) or not len(self._end_ids):
            return None
        forbidden = torch.zeros_like(logits, dtype=torch.bool)
        forbidden[:, self._end_ids] = torch.tensor(early, device=logits.device)[:, None]
        return forbidden
