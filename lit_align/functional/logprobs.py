"""From logits to what the losses need of each token: its log-prob, and statistics of its distribution."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

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
        ``[N]`` tensors. ``logps`` and ``entropy`` in nats, differentiable; the other statistics carry no
        gradient: ``log_sum_p2`` (log of the sum of the squared probabilities), ``mean_logit``, ``top1``
        (1 where the target is the most probable token).

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
    for name in sorted(set(wanted) - {"logps", "entropy"}):
        with torch.no_grad():
            parts = zip(_tiles(logits), _tiles(targets, logits.shape[1]), strict=True)
            found[name] = torch.cat([_STATISTICS[name](_wide(part), ids) for part, ids in parts])
    if "entropy" in wanted:
        found["entropy"] = _TiledEntropy.apply(logits)
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


class _TiledEntropy(torch.autograd.Function):
    """:func:`entropy` that keeps nothing but the logits for its gradient, ``dH / dz = -p (log p + H)``."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        found = torch.cat([entropy(part) for part in _tiles(logits)])
        ctx.save_for_backward(logits, found)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        logits, found = ctx.saved_tensors
        slopes = torch.empty_like(logits)
        width = logits.shape[1]
        rows = zip(_tiles(logits), _tiles(slopes), _tiles(found, width), _tiles(grad, width), strict=True)
        for part, out, each, outer in rows:
            log_probs = _wide(part).log_softmax(-1)
            # A token that cannot occur has log p = -inf, and adds nothing.
            surprise = torch.where(log_probs.isneginf(), 0.0, log_probs + each[:, None])
            out.copy_(log_probs.exp_().mul_(surprise).mul_(-outer[:, None]))
        return slopes


def _tiles(values: Tensor, width: int | None = None) -> tuple[Tensor, ...]:
    """Rows in pieces that belong to logits ``width`` wide (by default those are ``values`` themselves)."""
    return values.split(max(1, _LOGITS_AT_A_TIME // max(1, width or values.shape[1])))


def _top1(logits: Tensor, targets: Tensor) -> Tensor:
    return (logits.argmax(-1) == targets).to(logits.dtype)


def _wide(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


_STATISTICS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "log_sum_p2": lambda logits, targets: log_sum_p2(logits),
    "mean_logit": lambda logits, targets: logits.mean(-1),
    "top1": _top1,
}

#: What :func:`token_statistics` can be asked for.
TOKEN_STATISTICS = frozenset({"logps", "entropy", *_STATISTICS})
