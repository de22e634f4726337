"""Weighted metrics that come out the same however the batches were cut."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from torchmetrics import Metric as TorchMetric

from lit_align.outputs import Metric

_EXTREME = {"min": torch.inf, "max": -torch.inf}


def average(batches: Iterable[Mapping[str, Metric]], device: torch.device) -> dict[str, float]:
    """What a stretch of batches reported, over all processes. Every process must report the same names."""
    table = MetricTable().to(device)
    table.update(batches)
    return table.compute()


class MetricTable(TorchMetric):
    """Many named metrics in two vectors, reduced over processes in a handful of transfers.

    An average is a sum over a sum of weights, taken only at the end: averaging averages gives
    different numbers for different micro-batches. Every process must report the same names.
    """

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        self.kinds: dict[str, str] = {}
        for name in ("total", "weight"):
            self.add_state(name, torch.zeros(0), dist_reduce_fx="sum")
        self.add_state("low", torch.zeros(0), dist_reduce_fx="min")
        self.add_state("high", torch.zeros(0), dist_reduce_fx="max")

    def update(self, batches: Iterable[Mapping[str, Metric]]) -> None:
        """Take in what a stretch of batches reported; once.

        The names are the union over the batches: a batch may lack one (a statistic of logging steps).
        """
        if self.kinds:
            raise RuntimeError("a MetricTable takes one update")
        batches = list(batches)
        self._open({name: metric.reduce for metrics in batches for name, metric in metrics.items()})
        for metrics in batches:
            self._add(metrics)

    def compute(self) -> dict[str, float]:
        """All metrics; those that no example contributed to are left out."""
        mean = self.total / self.weight
        rows = torch.stack((mean, self.low, self.high, self.weight)).tolist()
        column = {"mean": 0, "min": 1, "max": 2}
        return {
            name: rows[column[kind]][i] for i, (name, kind) in enumerate(self.kinds.items()) if rows[3][i] > 0
        }

    def _open(self, kinds: dict[str, str]) -> None:
        self.kinds = kinds
        size, device = len(kinds), self.device
        self.total = torch.zeros(size, device=device)
        self.weight = torch.zeros(size, device=device)
        self.low = torch.full((size,), _EXTREME["min"], device=device)
        self.high = torch.full((size,), _EXTREME["max"], device=device)

    def _add(self, metrics: Mapping[str, Metric]) -> None:
        nothing = torch.zeros((), device=self.device)
        found = [metrics.get(name, Metric(nothing, nothing)) for name in self.kinds]
        values = torch.stack([m.value.detach().float() for m in found]).to(self.device)
        weights = torch.stack([m.weight.detach().float() for m in found]).to(self.device)
        present = weights > 0
        kinds = list(self.kinds.values())
        self.total = self.total + self._where(kinds, "mean", values, 0.0)
        self.weight = self.weight + weights
        self.low = torch.minimum(self.low, self._where(kinds, "min", values, torch.inf, present))
        self.high = torch.maximum(self.high, self._where(kinds, "max", values, -torch.inf, present))

    @staticmethod
    def _where(
        kinds: list[str], kind: str, values: Tensor, other: float, present: Tensor | None = None
    ) -> Tensor:
        chosen = torch.tensor([k == kind for k in kinds], device=values.device)
        if present is not None:
            chosen = chosen & present
        return torch.where(chosen, values, torch.full_like(values, other))
