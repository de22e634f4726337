"""What a token counts: the weights that make one loss of many tokens.

``Σ_t weights_t · loss_t / total`` is the loss, where both sums range over everything that one update sees,
all micro-batches and all processes: so the cut of the batch changes nothing.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lit_align.functional.segments import segment_sum


class TokenWeights(NamedTuple):
    """Weights of tokens, and what their weighted sum is divided by.

    Attributes:
        weights: ``[N]``; 0 where a token does not count.
        total: scalar; those of micro-batches and processes are added.
    """

    weights: Tensor
    total: Tensor


def token_mean(mask: Tensor, sequence: Tensor, count: int) -> TokenWeights:
    """Every token counts the same, so that long completions count more.

    DAPO (arXiv 2503.14476) Eq. 8: ``1/Σ|y_i| Σ_i Σ_t``.

    Args:
        mask: ``[N]`` how much each token counts, 0 or 1.
        sequence: ``[N]`` index of the completion each token belongs to; not used.
        count: ``C``; not used.
    """
    weights = _weights(mask)
    return TokenWeights(weights, weights.sum())


def sequence_mean(mask: Tensor, sequence: Tensor, count: int) -> TokenWeights:
    """Every completion counts the same: the mean of token means.

    GRPO (arXiv 2402.03300) Eq. 3: ``1/G Σ_i 1/|y_i| Σ_t``. A completion without a token that counts adds
    nothing, and is one of G all the same.

    Args:
        mask: ``[N]`` how much each token counts, 0 or 1.
        sequence: ``[N]`` index of the completion each token belongs to.
        count: ``C``, the number of completions.
    """
    weights = _weights(mask)
    lengths = segment_sum(weights, sequence, count)
    return TokenWeights(weights / lengths.masked_fill(lengths == 0, 1)[sequence], _number(count, weights))


def sequence_sum(mask: Tensor, sequence: Tensor, count: int) -> TokenWeights:
    """The mean of token sums: a completion counts by its length.

    LUSPO (arXiv 2602.05261): ``1/G Σ_i Σ_t``, GSPO's completion loss times its length.

    Args:
        mask: ``[N]`` how much each token counts, 0 or 1.
        sequence: ``[N]`` index of the completion each token belongs to; not used.
        count: ``C``, the number of completions.
    """
    weights = _weights(mask)
    return TokenWeights(weights, _number(count, weights))


def constant(mask: Tensor, sequence: Tensor, count: int, *, length: int) -> TokenWeights:
    """Every token counts the same, in every batch: no length enters.

    Dr. GRPO (arXiv 2503.20783): ``1/(G L) Σ_i Σ_t`` with a constant L.

    Args:
        mask: ``[N]`` how much each token counts, 0 or 1.
        sequence: ``[N]`` index of the completion each token belongs to; not used.
        count: ``C``, the number of completions.
        length: L, the longest completion that may be generated.
    """
    if length <= 0:
        raise ValueError(f"constant: length must be positive, got {length}")
    weights = _weights(mask)
    return TokenWeights(weights / length, _number(count, weights))


#: Normalisers by name. ``constant`` wants a ``length`` more.
NORMALISERS: dict[str, Callable[..., TokenWeights]] = {
    "token_mean": token_mean,
    "sequence_mean": sequence_mean,
    "sequence_sum": sequence_sum,
    "constant": constant,
}


def _weights(mask: Tensor) -> Tensor:
    return mask if mask.is_floating_point() else mask.to(torch.float32)


def _number(count: int, like: Tensor) -> Tensor:
    return torch.tensor(float(count), dtype=like.dtype, device=like.device)
