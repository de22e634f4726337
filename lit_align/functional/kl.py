"""How far one policy is from another: estimators of the KL divergence, one value per token.

With ``d = log π - log π_ref`` of a token that was sampled from ``π``, each estimator is a function of ``d``
whose mean over samples is, or is close to, ``KL(π ‖ π_ref)``. They are those of Schulman,
"Approximating KL divergence" (2020): http://joschu.net/blog/kl-approx.html
"""

from collections.abc import Callable

import torch
from torch import Tensor


def k1(logps: Tensor, reference_logps: Tensor) -> Tensor:
    """Log-ratio: unbiased, of high variance, negative for half of the tokens.

    Schulman (2020), k1: ``log π - log π_ref``.

    Args:
        logps: ``[N]`` log-probs of the sampled tokens.
        reference_logps: ``[N]`` the same under the reference.

    Returns:
        ``[N]`` in nats.
    """
    return logps - reference_logps


def absolute(logps: Tensor, reference_logps: Tensor) -> Tensor:
    """Absolute log-ratio: never rewards a step away from the reference.

    TRL's ``abs`` penalty: ``|log π - log π_ref|``; an upper bound of the divergence, not an estimate.

    Args:
        logps: ``[N]`` log-probs of the sampled tokens.
        reference_logps: ``[N]`` the same under the reference.

    Returns:
        ``[N]`` in nats, not negative.
    """
    return (logps - reference_logps).abs()


def k2(logps: Tensor, reference_logps: Tensor) -> Tensor:
    """Half the squared log-ratio: biased, of low variance; as a loss its gradient is that of the KL.

    Schulman (2020), k2: ``(log π - log π_ref)² / 2``.

    Args:
        logps: ``[N]`` log-probs of the sampled tokens.
        reference_logps: ``[N]`` the same under the reference.

    Returns:
        ``[N]`` in nats, not negative.
    """
    return 0.5 * (logps - reference_logps) ** 2


def k3(logps: Tensor, reference_logps: Tensor) -> Tensor:
    """Log-ratio with a control variate: unbiased, of low variance, never negative.

    Schulman (2020), k3; GRPO (arXiv 2402.03300) Eq. 4: ``e^(-d) - 1 + d``.

    Args:
        logps: ``[N]`` log-probs of the sampled tokens.
        reference_logps: ``[N]`` the same under the reference.

    Returns:
        ``[N]`` in nats, not negative.
    """
    # expm1, because e^(-d) - 1 of a small d in float32 is mostly rounding.
    difference = logps - reference_logps
    return torch.expm1(-difference) + difference


def importance_corrected(kl: Tensor, ratios: Tensor) -> Tensor:
    """An estimate on tokens of the old policy, made one of the present policy.

    DeepSeek-V3.2 (arXiv 2512.02556), unbiased KL estimate: ``π/π_old · k3``.

    The gradient runs through the ratio too: that is what makes the gradient of k3 unbiased.

    Args:
        kl: ``[N]`` an estimate, of the present policy's log-probs.
        ratios: ``[N]`` importance ratios ``π/π_old``.

    Returns:
        ``[N]`` in nats.
    """
    return ratios * kl


def full(logits: Tensor, reference_logits: Tensor) -> Tensor:
    """The divergence itself, summed over the vocabulary instead of estimated from the sampled token.

    ``Σ_v π(v) (log π(v) - log π_ref(v))``, where ``0 log 0`` is 0.

    Args:
        logits: ``[N, V]`` that predict each token, already divided by a temperature.
        reference_logits: ``[N, V]`` of the reference.

    Returns:
        ``[N]`` in nats, not negative up to rounding.
    """
    wide = torch.promote_types(logits.dtype, torch.float32)
    own, other = (torch.log_softmax(x.to(wide), -1) for x in (logits, reference_logits))
    # The difference is cut out, and not the product: behind a product inf * 0 would still be the gradient.
    difference = (own - other).masked_fill(own == -torch.inf, 0)
    return (own.exp() * difference).sum(-1)


#: Estimators by name: functions of ``[N]`` log-probs and reference log-probs. ``full`` needs logits and
#: is not among them.
KL_ESTIMATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "k1": k1,
    "k2": k2,
    "k3": k3,
    "abs": absolute,
}
