"""How much likelier what was sampled has become: log-ratios of the present policy to the old one.

The old log-probs are data. Tokens that the policy did not choose have a log-ratio of 0, whatever stands
there.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lit_align.functional.segments import segment_mean, segment_sum


def token_log_ratios(logps: Tensor, old_logps: Tensor, mask: Tensor, sequence: Tensor, count: int) -> Tensor:
    """Each token for itself.

    PPO (arXiv 1707.06347): ``log π(y_t) - log π_old(y_t)``.

    Args:
        logps: ``[N]`` log-probs of the sampled tokens.
        old_logps: ``[N]`` the same under the policy that sampled them.
        mask: ``[N]`` non-zero where the policy chose the token.
        sequence: ``[N]`` index of the completion each token belongs to; not used.
        count: ``C``; not used.

    Returns:
        ``[N]`` with gradient.
    """
    return torch.where(mask != 0, logps - old_logps.detach(), 0)


def sequence_log_ratios(
    logps: Tensor, old_logps: Tensor, mask: Tensor, sequence: Tensor, count: int
) -> Tensor:
    """One ratio for all tokens of a completion, taken to the power of one over its length.

    GSPO (arXiv 2507.18071) Eq. 7: ``1/|y| Σ_t (log π(y_t) - log π_old(y_t))``.

    Args:
        logps: ``[N]`` log-probs of the sampled tokens.
        old_logps: ``[N]`` the same under the policy that sampled them.
        mask: ``[N]`` non-zero where the policy chose the token.
        sequence: ``[N]`` index of the completion each token belongs to.
        count: ``C``, the number of completions.

    Returns:
        ``[N]`` with gradient, equal within a completion.
    """
    each = token_log_ratios(logps, old_logps, mask, sequence, count)
    return segment_mean(each, (mask != 0).to(each.dtype), sequence, count)[sequence]


def sequence_token_log_ratios(
    logps: Tensor, old_logps: Tensor, mask: Tensor, sequence: Tensor, count: int
) -> Tensor:
    """The value of :func:`sequence_log_ratios` with the gradient of each token alone.

    GSPO-token (arXiv 2507.18071) Eq. 14: ``sg(s) + log π(y_t) - sg(log π(y_t))``: for advantages that
    differ from token to token.

    Args:
        logps: ``[N]`` log-probs of the sampled tokens.
        old_logps: ``[N]`` the same under the policy that sampled them.
        mask: ``[N]`` non-zero where the policy chose the token.
        sequence: ``[N]`` index of the completion each token belongs to.
        count: ``C``, the number of completions.

    Returns:
        ``[N]`` with gradient.
    """
    value = sequence_log_ratios(logps, old_logps, mask, sequence, count).detach()
    return torch.where(mask != 0, value + (logps - logps.detach()), value)


def sequence_sum_log_ratios(
    logps: Tensor, old_logps: Tensor, mask: Tensor, sequence: Tensor, count: int
) -> Tensor:
    """The ratio of the whole completion, as it is.

    RLOO (arXiv 2402.14740), a completion as one action: ``Σ_t (log π(y_t) - log π_old(y_t))``.

    Args:
        logps: ``[N]`` log-probs of the sampled tokens.
        old_logps: ``[N]`` the same under the policy that sampled them.
        mask: ``[N]`` non-zero where the policy chose the token.
        sequence: ``[N]`` index of the completion each token belongs to.
        count: ``C``, the number of completions.

    Returns:
        ``[N]`` with gradient, equal within a completion.
    """
    return segment_sum(token_log_ratios(logps, old_logps, mask, sequence, count), sequence, count)[sequence]


#: Log-ratios by name of the level at which they are taken.
IMPORTANCE: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor]] = {
    "token": token_log_ratios,
    "sequence": sequence_log_ratios,
    "sequence_token": sequence_token_log_ratios,
    "sequence_sum": sequence_sum_log_ratios,
}


def truncated_weights(log_ratios: Tensor, *, cap: float) -> Tensor:
    """Weights that undo a sampler whose probabilities differ from the trainer's.

    Truncated importance sampling, Yao et al., "Your Efficient RL Framework Secretly Brings You Off-Policy RL
    Training" (2025): ``min(π_old / π_sampler, C)``.

    Args:
        log_ratios: ``[N]`` trainer's log-probs less the sampler's, of one and the same policy, at any level.
        cap: C.

    Returns:
        ``[N]`` without gradient.
    """
    return log_ratios.detach().clamp(max=_log(cap)).exp()


def masked_weights(log_ratios: Tensor, *, cap: float) -> Tensor:
    """Like :func:`truncated_weights`, but what is above the cap is left out.

    ``ρ [ρ ≤ C]`` with ``ρ = π_old / π_sampler``.

    Args:
        log_ratios: ``[N]`` trainer's log-probs less the sampler's, of one and the same policy, at any level.
        cap: C.

    Returns:
        ``[N]`` without gradient.
    """
    return torch.where(log_ratios.detach() <= _log(cap), log_ratios.detach().exp(), 0)


def _log(cap: float) -> float:
    if cap <= 0:
        raise ValueError(f"the cap of importance weights must be positive, got {cap}")
    return math.log(cap)
