"""What comes out of a batch: the scores of a policy, a loss as a sum and its weight, and metrics.

Shapes, here and everywhere: ``C`` completions, ``N`` completion tokens of the whole batch one after another.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

#: Statistics of the next-token distribution that a scorer can return beside the log-probs.
Statistic = Literal["entropy", "log_sum_p2", "mean_logit", "top1", "router_loss"]


@dataclass(frozen=True)
class Scores:
    """What a policy says about the completion tokens of a forest.

    Attributes:
        logps: ``[N]`` log-prob of each completion token, in nats; 0 where the token weighs nothing.
        entropy: ``[N]`` entropy of the distribution that predicts the token, differentiable like ``logps``.
        log_sum_p2: ``[N]`` log of the sum over the vocabulary of the squared probabilities (WPO).
        mean_logit: ``[N]`` mean of the logits over the vocabulary.
        top1: ``[N]`` 1 where the token is the most probable one.
        values: ``[N]`` of a critic: what it expects from the state in which the token is chosen.
        router_loss: scalar load-balancing loss of a mixture-of-experts model.
    """

    logps: Tensor
    entropy: Tensor | None = None
    log_sum_p2: Tensor | None = None
    mean_logit: Tensor | None = None
    top1: Tensor | None = None
    values: Tensor | None = None
    router_loss: Tensor | None = None


class Metric(NamedTuple):
    """One number to report: a sum and its weight, so that it can be averaged over any cut.

    Attributes:
        value: scalar tensor; the weighted sum for a mean, the extreme for ``min`` and ``max``.
        weight: scalar tensor (1 for ``min`` and ``max``).
        reduce: how two of them become one.
    """

    value: Tensor
    weight: Tensor
    reduce: Literal["mean", "min", "max"] = "mean"

    @classmethod
    def mean(cls, values: Tensor, weights: Tensor | None = None) -> "Metric":
        """Mean of ``values``, each counted with its weight (1 where none are given)."""
        values = values.detach().float()
        if weights is None:
            count = torch.tensor(float(values.numel()), dtype=torch.float32, device=values.device)
            return cls(values.sum(), count)
        return cls((values * weights).sum(), weights.sum().float())

    @classmethod
    def low(cls, values: Tensor) -> "Metric":
        """Smallest of ``values``."""
        return cls(values.detach().float().min(), torch.ones((), device=values.device), "min")

    @classmethod
    def high(cls, values: Tensor) -> "Metric":
        """Largest of ``values``."""
        return cls(values.detach().float().max(), torch.ones((), device=values.device), "max")


class LossOutput(NamedTuple):
    """A loss as a sum and its weight, never a mean, so that no cut of the batch can change it.

    Attributes:
        total: scalar, the sum over examples (or tokens), with its gradient.
        weight: scalar, how many examples (or how much token weight) the sum ranges over.
        metrics: what to report, detached.
    """

    total: Tensor
    weight: Tensor
    metrics: dict[str, Metric]


def merge_outputs(outputs: Sequence[LossOutput]) -> LossOutput:
    """One output for the parts of a batch: sums of sums, and extremes of extremes."""
    if len(outputs) == 1:
        return outputs[0]
    return LossOutput(
        total=torch.stack([o.total for o in outputs]).sum(),
        weight=torch.stack([o.weight for o in outputs]).sum(),
        metrics=merge_metrics([o.metrics for o in outputs]),
    )


def merge_metrics(reports: Sequence[dict[str, Metric]]) -> dict[str, Metric]:
    """What several parts report, as one report; a part may lack a name."""
    found: dict[str, list[Metric]] = {}
    for report in reports:
        for name, metric in report.items():
            found.setdefault(name, []).append(metric)
    return {name: _merge(metrics) for name, metrics in found.items()}


def _merge(metrics: list[Metric]) -> Metric:
    values = torch.stack([m.value for m in metrics])
    how = metrics[0].reduce
    if how == "mean":
        return Metric(values.sum(), torch.stack([m.weight for m in metrics]).sum())
    # Of weight where any part is: one in which nothing counted holds no extreme, but an infinity.
    weight = torch.stack([m.weight for m in metrics]).max()
    return Metric(values.min() if how == "min" else values.max(), weight, how)
