"""The divergence of a policy from its reference over the whole vocabulary, at each token of a forest."""

from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from lit_align.batches import Forest
from lit_align.functional.kl import full
from lit_align.runtime.agreement import agree
from lit_align.scoring import padded
from lit_align.scoring.divergence_head import divergence_loss
from lit_align.scoring.head import Head, plain_head
from lit_align.scoring.policy import Policy
from lit_align.scoring.reference_base import Reference


@torch.no_grad()
def full_kl(policy: Policy, reference: Reference, batch: Forest, *, temperature: float = 1.0) -> Tensor:
    """``KL(π ‖ π_ref)`` of the distributions that predict each completion token, in nats.

    In the flat layout tile by tile, without the logits of either model. Weights that are spread over
    processes are gathered, layer by layer for the states and the heads as a whole; all processes call it.

    Args:
        policy: π.
        reference: with weights (a `Cached` one asks the one behind it).
        batch: the forest.
        temperature: the logits of both are divided by it.

    Returns:
        ``[N]`` in float32, without gradient; 0 where a token weighs nothing.

    Raises:
        ValueError: the reference has no weights.
    """
    spread = any(isinstance(p, DTensor) for p in policy.parameters())
    # Where weights are gathered, a process without tokens takes its part in that.
    if not spread and not batch.weights.any():
        return torch.zeros_like(batch.weights)
    own = _predictions(policy, batch, temperature, spread)
    with reference.using() as scorer:
        other = _predictions(scorer, batch, temperature, spread)
    scored = batch.weights.nonzero().squeeze(1)
    if own[1] is not None and other[1] is not None:
        weights = torch.ones(len(own[0]), device=batch.device)
        # A generalised divergence at 1 is that of the student (here the policy) from the teacher.
        _, values = divergence_loss(own[0], own[1], other[0], other[1], weights, beta=1.0)
    else:
        values = full(_logits(own), _logits(other))
    return torch.zeros_like(batch.weights).index_put((scored,), values.float())


def _predictions(
    scorer: Policy, batch: Forest, temperature: float, spread: bool
) -> tuple[Tensor, Head | None]:
    """States and head, or logits and ``None`` where the head is more than one matrix."""
    base: Any = padded.base_model(scorer.model)
    pads = plain_head(base) is None or scorer.flat_layout(batch) is None
    # Heads are gathered by all processes or by none, and one may have a document longer than a window.
    if bool(agree(int(pads), batch.device)) if spread else pads:
        return scorer.scored_logits(batch) / temperature, None
    states, _ = scorer.token_states(batch)
    # Asked for anew, since gathering may have put other tensors in the place of the weights.
    head = plain_head(base, temperature)
    assert head is not None
    bias = None if head.bias is None else _whole(head.bias)
    return states, head._replace(weight=_whole(head.weight), bias=bias)


def _whole(weight: Tensor) -> Tensor:
    return weight.full_tensor() if isinstance(weight, DTensor) else weight


def _logits(found: tuple[Tensor, Head | None]) -> Tensor:
    values, head = found
    if head is None:
        return values
    logits = values @ head.weight.T
    logits = logits if head.bias is None else logits + head.bias
    logits = logits if head.softcap is None else head.softcap * torch.tanh(logits / head.softcap)
    return logits * head.scale
