"""LD-DPO: completions that are longer than their rival get less out of it."""

from torch import Tensor

from lit_align.functional.segments import segment_positions, segment_sum


def desensitised_logps(
    logps: Tensor, weights: Tensor, sequence: Tensor, shared_lengths: Tensor, *, alpha: float
) -> Tensor:
    """Length-desensitised log-probs of whole completions: the tail past the rival's length counts α.

    LD-DPO (arXiv 2409.06411), with ``l = min(|y_w|, |y_l|)``:
    ``Σ_{t<l} log π(y_t) + α Σ_{t>=l} log π(y_t)``.

    Args:
        logps: ``[N]`` log-probs of completion tokens, one completion after another.
        weights: ``[N]`` weight of each token; one of weight 0 adds nothing and is no step towards ``l``.
        sequence: ``[N]`` index of the completion each token belongs to, ascending.
        shared_lengths: ``[C]`` the number ``l`` of weighted tokens that a completion has in common with
            its rival; the same for both of a pair.
        alpha: weight of the tail; 1 is DPO, 0 ignores it.

    Returns:
        ``[C]``.

    Raises:
        ValueError: where alpha is not in ``[0, 1]``.

    >>> import torch
    >>> logps, owner = -torch.ones(5), torch.tensor([0, 0, 0, 1, 1])
    >>> desensitised_logps(logps, torch.ones(5), owner, torch.tensor([2, 2]), alpha=0.5)
    tensor([-2.5000, -2.0000])
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"desensitised_logps: alpha weighs the tail and lies in [0, 1], got {alpha}")
    count = len(shared_lengths)
    tail = segment_positions(weights > 0, sequence, count) >= shared_lengths[sequence]
    return segment_sum(logps * weights * (1 - (1 - alpha) * tail.to(logps.dtype)), sequence, count)
