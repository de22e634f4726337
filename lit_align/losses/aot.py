"""Alignment via optimal transport: preferences between distributions, through sorted quantiles.

These losses couple the pairs: values are sorted **over the batch at hand**, which is the micro-batch
of one process. So the one place where the cut of the batch changes the result is here, by design of
the method; large micro-batches serve it best.
"""

import torch.nn.functional as F
from torch import Tensor

from lit_align.losses.label_noise import check_label_smoothing


def aot(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    chosen_reference_logps: Tensor,
    rejected_reference_logps: Tensor,
    *,
    beta: float,
    label_smoothing: float,
) -> Tensor:
    """Alignment via Optimal Transport, paired: the policy's leads dominate the reference's.

    AOT (arXiv 2406.05882), paired, with ``x = sort(π_w - π_l) - sort(ref_w - ref_l)`` over the batch:
    ``-(1-ε) log σ(βx) - ε log σ(-βx)``.

    Args:
        chosen_logps: ``[B]`` log-probs of the preferred completions under the policy.
        rejected_logps: ``[B]`` of the others.
        chosen_reference_logps: ``[B]`` log-probs of the preferred completions under the reference.
        rejected_reference_logps: ``[B]`` of the others.
        beta: strength of the pull to the reference.
        label_smoothing: ε, the probability that a pair is labelled the wrong way round.

    Returns:
        ``[B]``; a value stands where the pair stands whose ``π_w - π_l`` it was computed from.

    Raises:
        ValueError: where ε is not in ``[0, 0.5)``.
    """
    check_label_smoothing(label_smoothing, loss="aot")
    policy = chosen_logps - rejected_logps
    lead = beta * (policy - _same_quantile(chosen_reference_logps - rejected_reference_logps, policy))
    return -(1 - label_smoothing) * F.logsigmoid(lead) - label_smoothing * F.logsigmoid(-lead)


def aot_unpaired(
    chosen_logratios: Tensor, rejected_logratios: Tensor, *, beta: float, label_smoothing: float
) -> Tensor:
    """Alignment via Optimal Transport, unpaired: preferred rewards dominate the others.

    AOT (arXiv 2406.05882), unpaired, with ``x = sort(Δ_w) - sort(Δ_l)`` over the batch:
    ``-(1-ε) log σ(βx) - ε log σ(-βx)``.

    Args:
        chosen_logratios: ``[B]`` Δ of the preferred completions.
        rejected_logratios: ``[B]`` Δ of the others.
        beta: strength of the pull to the reference.
        label_smoothing: ε, the probability that a pair is labelled the wrong way round.

    Returns:
        ``[B]``; a value stands where the chosen completion stands whose ``Δ_w`` it was computed from.

    Raises:
        ValueError: where ε is not in ``[0, 0.5)``.
    """
    check_label_smoothing(label_smoothing, loss="aot_unpaired")
    lead = beta * (chosen_logratios - _same_quantile(rejected_logratios, chosen_logratios))
    return -(1 - label_smoothing) * F.logsigmoid(lead) - label_smoothing * F.logsigmoid(-lead)


def _same_quantile(values: Tensor, of: Tensor) -> Tensor:
    # The sorted values, in the order of the other side: so a result belongs to a pair of the batch,
    # and can be weighted or reported with it, where two sorted lists would have lost track of it.
    ranks = of.detach().argsort(stable=True).argsort()
    return values.sort().values[ranks]
