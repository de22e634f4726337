"""A minibatch of experience and its value loss, with what is reported of it. Names are TRL's."""

from torch import Tensor

from lit_align.batches import Forest
from lit_align.losses.ppo import clipped_squared_error, squared_error, values_clipped
from lit_align.outputs import LossOutput, Metric


def value_loss(values: Tensor, batch: Forest, *, clip_range: float | None) -> LossOutput:
    """Sum over tokens of a critic's squared error, and the number of tokens.

    Args:
        values: ``[N]`` of the present critic.
        batch: with the columns ``values`` (of the rollout) and ``returns``.
        clip_range: how far a value may move from that of the rollout; ``None`` for as far as it likes.
    """
    columns, mask = batch.token_columns, batch.weights
    returns, old = columns["returns"].to(values.dtype), columns["values"].to(values.dtype)
    metrics = {}
    if clip_range is None:
        each = squared_error(values, returns)
    else:
        each = clipped_squared_error(values, old, returns, clip_range=clip_range)
        clipped = values_clipped(values.detach(), old, returns, clip_range=clip_range)
        metrics["val/clipfrac_avg"] = Metric.mean(clipped.float(), mask)
    total = (each * mask).sum()
    metrics["loss/value_avg"] = Metric(total.detach(), mask.sum())
    metrics["val/mean"] = Metric.mean(values, mask)
    metrics["val/error"] = Metric.mean((values - returns) ** 2, mask)
    metrics["returns/mean"] = Metric.mean(returns, mask)
    return LossOutput(total, mask.sum(), metrics)
