"""Which tokens a policy loss leaves out, beyond those that nobody counts.

These masks take the policy term away and leave the KL term: what should not be learned from need not be
forgotten.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from lit_align.functional.segments import segment_mean


def off_policy_mask(
    logps: Tensor,
    old_logps: Tensor,
    advantages: Tensor,
    mask: Tensor,
    sequence: Tensor,
    completions: int,
    *,
    threshold: float,
) -> Tensor:
    """Leave out bad completions that the policy would hardly write any more.

    DeepSeek-V3.2 (arXiv 2512.02556), off-policy sequence masking:
    ``0 where A < 0 and 1/|y| Σ_t (log π_old - log π) > δ, else 1``.

    Args:
        logps: ``[N]`` log-probs of the sampled tokens.
        old_logps: ``[N]`` the same under the policy that sampled them.
        advantages: ``[N]``.
        mask: ``[N]`` non-zero where the policy chose the token.
        sequence: ``[N]`` index of the completion each token belongs to.
        completions: ``C``, the number of completions.
        threshold: δ, in nats per token.

    Returns:
        ``[N]`` bool, false where the policy term is to be left out.
    """
    counted = (mask != 0).to(logps.dtype)
    drift = segment_mean(
        (old_logps - logps).detach().masked_fill(mask == 0, 0), counted, sequence, completions
    )
    return ~((advantages < 0) & (drift > threshold)[sequence])


def entropy_threshold(
    entropies: Tensor, mask: Tensor, *, top: float, gather: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """The entropy that a given share of the tokens reaches.

    Wang et al., "Beyond the 80/20 rule" (arXiv 2506.01939): the ``1 - ρ`` quantile over all tokens of the
    batch.

    Args:
        entropies: ``[N]`` in nats.
        mask: ``[N]`` non-zero where the policy chose the token.
        top: ρ, share of the tokens to keep, above 0 and at most 1.
        gather: puts the entropies of all processes together, where there are several.

    Returns:
        Scalar, linearly interpolated between tokens; ``inf`` where no token counts.

    Raises:
        ValueError: where the share is no share.
    """
    if not 0 < top <= 1:
        raise ValueError(f"entropy_threshold: top must be above 0 and at most 1, got {top}")
    counted = entropies.detach()[mask != 0]
    if gather is not None:
        counted = gather(counted)
    if not len(counted):
        return entropies.new_tensor(torch.inf)
    # torch.quantile refuses more than 16M values; a sort does not.
    ordered = counted.sort().values
    place = (1 - top) * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return torch.lerp(ordered[below], ordered[above], place - below)


def high_entropy_mask(entropies: Tensor, mask: Tensor, threshold: Tensor) -> Tensor:
    """Tokens at which the policy makes a choice.

    Wang et al. (arXiv 2506.01939) Eq. 3: ``[H_t ≥ τ]``.

    Args:
        entropies: ``[N]`` in nats.
        mask: ``[N]`` non-zero where the policy chose the token.
        threshold: τ, of :func:`entropy_threshold`.

    Returns:
        ``[N]`` bool, false where the policy term is to be left out.
    """
    return (entropies.detach() >= threshold) & (mask != 0)
