"""A divergence from a teacher over the whole vocabulary, tile by tile, as :mod:`lit_align.scoring.head` does.

A tile of student and teacher logits becomes divergences and their gradients while it is in cache: four matrix
products, one of them the teacher's, and no ``[M, V]`` tensor of either model.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lit_align.functional.divergence import check_beta, generalised_jsd
from lit_align.scoring.head import FusedLoss, Head, HeadWork, chunk_rows


def divergence_loss(
    hidden: Tensor,
    head: Head,
    teacher_hidden: Tensor,
    teacher_head: Head,
    weights: Tensor,
    *,
    beta: float = 0.5,
) -> tuple[Tensor, Tensor]:
    """Weighted sum of the generalised Jensen-Shannon divergences between student and teacher.

    Args:
        hidden: ``[M, D]`` states of the student that predict the scored tokens.
        head: the student's head; a temperature is its ``scale``.
        teacher_hidden: ``[M, E]`` states of the teacher at the same places.
        teacher_head: the teacher's head, over the same vocabulary.
        weights: ``[M]`` of the tokens.
        beta: see :func:`lit_align.functional.divergence.generalised_jsd`.

    Returns:
        Scalar sum, differentiable by the student's states and head, and ``[M]`` divergences in nats,
        detached.

    Raises:
        ValueError: where the vocabularies differ, or ``beta`` is not between 0 and 1.
    """
    check_beta(beta)
    if len(head.weight) != len(teacher_head.weight):
        raise ValueError(
            f"the student has {len(head.weight)} tokens and the teacher {len(teacher_head.weight)}: "
            "a divergence needs two models with the same vocabulary"
        )
    found: list[Tensor] = []
    rows = chunk_rows(len(head.weight))
    # The head's own targets play no part: every token of the vocabulary does.
    targets = torch.zeros(len(hidden), dtype=torch.long, device=hidden.device)

    def run(
        states: Tensor, weight: Tensor, bias: Tensor | None, critic: None, needs: Sequence[bool]
    ) -> HeadWork:
        work = HeadWork(states, head._replace(weight=weight, bias=bias), targets, frozenset(), needs)
        teacher = HeadWork(teacher_hidden.detach(), teacher_head, targets, frozenset(), (False,) * 3)
        for a in range(0, max(len(states), 1), rows):
            b = min(a + rows, len(states))
            logits = work.logits(a, b)
            cap_slope = work.cap_slope(logits) if work.gradients else None
            values, slopes = generalised_jsd(logits, teacher.logits(a, b), beta=beta)
            found.append(values)
            work.total += (values * weights[a:b]).sum()
            if work.gradients:
                work.accumulate(slopes.mul_(weights[a:b, None]), cap_slope, a, b)
        return work

    total = FusedLoss.apply(hidden, head.weight, head.bias, None, run, torch.is_grad_enabled())
    return total, torch.cat(found)
