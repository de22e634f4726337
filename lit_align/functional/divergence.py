"""How far two next-token distributions are from each other, over the whole vocabulary.

``s`` is the student (the policy that learns), ``t`` the teacher, ``m = (1 - beta) s + beta t``.
"""

import torch
from torch import Tensor


def generalised_jsd(
    student_logits: Tensor, teacher_logits: Tensor, *, beta: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Generalised Jensen-Shannon divergence of each row, and its gradient by the student's logits.

    GKD (arXiv 2306.13649), eq. 1: ``beta KL(t ‖ m) + (1 - beta) KL(s ‖ m)``. At the ends, where that is
    0 for every pair, the limits that are in use: ``beta = 0`` is ``KL(t ‖ s)``, ``beta = 1`` ``KL(s ‖ t)``.

    The gradient is written out, because it needs no more than the two distributions: with
    ``a = log s - log m``, ``d / dz = (1 - beta) s (a - sum s a)``; ``s - t`` and
    ``s (log s - log t - KL(s ‖ t))`` at the ends.

    Args:
        student_logits: ``[N, V]``, divided by a temperature where there is one.
        teacher_logits: ``[N, V]``.
        beta: weight of the teacher in the mixture, 0 to 1.

    Returns:
        ``[N]`` divergences in nats, and their gradients ``[N, V]``; neither carries a graph.

    Raises:
        ValueError: where ``beta`` is not between 0 and 1, or the vocabularies differ.

    >>> student, teacher = torch.tensor([[1.0, 3.0]]).log(), torch.tensor([[1.0, 1.0]]).log()
    >>> value, slope = generalised_jsd(student, teacher, beta=0.0)
    >>> value, slope  # KL(t ‖ s) = log(1/2 / 1/4) / 2 + log(1/2 / 3/4) / 2
    (tensor([0.1438]), tensor([[-0.2500,  0.2500]]))
    """
    check_beta(beta)
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"the student's logits are {list(student_logits.shape)} and the teacher's "
            f"{list(teacher_logits.shape)}: both models must have the same vocabulary"
        )
    with torch.no_grad():
        log_s, log_t = student_logits.log_softmax(-1), teacher_logits.log_softmax(-1)
        s, t = log_s.exp(), log_t.exp()
        if beta == 0.0:
            return _kl(t, log_t, log_s), s - t
        if beta == 1.0:
            log_ratio = torch.where(s > 0, log_s - log_t, 0.0)
            value = (s * log_ratio).sum(-1)
            return value, s * (log_ratio - value[:, None])
        log_m = ((1 - beta) * s + beta * t).log()
        a = torch.where(s > 0, log_s - log_m, 0.0)
        to_student = (s * a).sum(-1)
        value = beta * _kl(t, log_t, log_m) + (1 - beta) * to_student
        return value, (1 - beta) * s * (a - to_student[:, None])


def check_beta(beta: float) -> None:
    """Refuse a mixture that is none.

    Raises:
        ValueError: naming the number.
    """
    if not 0 <= beta <= 1:
        raise ValueError(f"beta is {beta}; it is the teacher's share of the mixture, between 0 and 1")


def _kl(p: Tensor, log_p: Tensor, log_q: Tensor) -> Tensor:
    return torch.where(p > 0, p * (log_p - log_q), 0.0).sum(-1)
