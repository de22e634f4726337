"""From logits to what the losses need of each token: its log-prob, and statistics of its distribution."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

# Statistics are computed for this many logits at a time, so that asking for one never costs a second
# tensor of the size of the logits: 4M float32 numbers are 16 MB.
_LOGITS_AT_A_TIME = 2**22


def token_statistics(logits: Tensor, targets: Tensor, wanted: Iterable[str] = ()) -> dict[str, Tensor]:
    """Log-probs of the target tokens, and statistics of the distributions that they were drawn from.

    Everything is computed in float32 (float64 where the logits are), whatever the dtype of the logits:
    ``logps = logits[target] - logsumexp(logits)``.

    Args:
        logits: ``[N, V]``; the row that predicts the token, already divided by a temperature.
        targets: ``[N]`` token ids.
        wanted: names out of :data:`TOKEN_STATISTICS`. ``logps`` comes unasked.

    Returns:
        ``[N]`` tensors. ``logps`` in nats, differentiable; the statistics carry no gradient:
        ``entropy`` (nats), ``log_sum_p2`` (log of the sum of the squared probabilities),
        ``mean_logit``, ``top1`` (1 where the target is the most probable token).

    Raises:
        ValueError: where the shapes do not belong together, or a statistic is unknown.

    >>> logits = torch.tensor([[0.0, 0.0], [-100.0, 100.0]])
    >>> found = token_statistics(logits, torch.tensor([0, 1]), {"entropy", "top1"})
    >>> found["logps"], found["entropy"], found["top1"]
    (tensor([-0.6931,  0.0000]), tensor([0.6931, 0.0000]), tensor([1., 1.]))
    """
    if logits.ndim != 2 or targets.shape != logits.shape[:1]:
        raise ValueError(
            f"token_statistics takes logits [N, V] and targets [N], got {list(logits.shape)} and "
            f"{list(targets.shape)}; flatten the batch and drop the positions that predict nothing"
        )
    unknown = set(wanted) - TOKEN_STATISTICS
    if unknown:
        raise ValueError(f"unknown token statistics {sorted(unknown)}; there are {sorted(TOKEN_STATISTICS)}")
    found = {"logps": target_logps(logits, targets)}
    with torch.no_grad():
        for name in sorted(set(wanted) - {"logps"}):
            rows = max(1, _LOGITS_AT_A_TIME // max(1, logits.shape[1]))
            parts = zip(logits.split(rows), targets.split(rows), strict=True)
            found[name] = torch.cat([_STATISTICS[name](_wide(part), ids) for part, ids in parts])
    return found


def target_logps(logits: Tensor, targets: Tensor) -> Tensor:
    """Log-probs of given tokens, without a tensor of all the log-probs.

    Args:
        logits: ``[N, V]``.
        targets: ``[N]`` token ids.

    Returns:
        ``[N]`` log-probs in nats, float32 or wider, differentiable.
    """
    chosen = logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    return _wide(chosen) - torch.logsumexp(_wide(logits), dim=-1)


def entropy(logits: Tensor) -> Tensor:
    """Entropy of each row's distribution: ``-sum p log p``, where ``0 log 0`` is 0.

    Args:
        logits: ``[N, V]``; ``-inf`` for a token that cannot occur.

    Returns:
        ``[N]`` in nats.
    """
    return torch.special.entr(torch.softmax(_wide(logits), dim=-1)).sum(-1)


def log_sum_p2(logits: Tensor) -> Tensor:
    """Log of the probability that two draws agree: ``log sum p^2``.

    Args:
        logits: ``[N, V]``.

    Returns:
        ``[N]``, between ``-log V`` (uniform) and 0 (certain).
    """
    logits = _wide(logits)
    return torch.logsumexp(2 * logits, dim=-1) - 2 * torch.logsumexp(logits, dim=-1)


def _top1(logits: Tensor, targets: Tensor) -> Tensor:
    return (logits.argmax(-1) == targets).to(logits.dtype)


def _wide(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


_STATISTICS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "entropy": lambda logits, targets: entropy(logits),
    "log_sum_p2": lambda logits, targets: log_sum_p2(logits),
    "mean_logit": lambda logits, targets: logits.mean(-1),
    "top1": _top1,
}

#: What :func:`token_statistics` can be asked for.
TOKEN_STATISTICS = frozenset({"logps", *_STATISTICS})
