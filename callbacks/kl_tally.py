"""Sums of per-token divergences over batches and processes."""

from typing import Any

import torch
from torch import Tensor

from lit_align.callbacks.sharing import gather


class Tally:
    """Adds up divergences per token, and averages them at the end: over tokens, and over sequences.

    Args:
        estimates: names of the estimates; equal on all processes.
    """

    def __init__(self, estimates: tuple[str, ...]) -> None:
        self.estimates = estimates
        self.values: dict[str, list[Tensor]] = {name: [] for name in estimates}
        self.sequences = 0

    def add(self, values: dict[str, Tensor], sequences: int) -> None:
        """Take in the ``[M]`` values of some sequences."""
        for name in self.estimates:
            self.values[name].append(values[name].float().cpu())
        self.sequences += sequences

    def means(self, trainer: Any) -> dict[str, float]:
        """Averages over all processes; empty where no token was seen. Collective.

        Returns:
            ``k1`` (mean over tokens) and ``k1_per_sequence`` (mean over sequences of the sum over their
            tokens), and so for each estimate, in nats.
        """
        sums = [self._all(name).double().sum().item() for name in self.estimates]
        parts = gather(trainer, [[len(self._all(self.estimates[0])), self.sequences, *sums]])
        tokens, sequences, *totals = (sum(column) for column in zip(*parts, strict=True))
        if not tokens:
            return {}
        found: dict[str, float] = {}
        for name, total in zip(self.estimates, totals, strict=True):
            found |= {name: total / tokens, f"{name}_per_sequence": total / sequences}
        return found

    def per_token(self, trainer: Any, name: str) -> Tensor:
        """The single values of all processes, for a histogram. Collective."""
        return torch.cat(gather(trainer, [self._all(name)]))

    def _all(self, name: str) -> Tensor:
        return torch.cat([torch.zeros(0), *self.values[name]])
