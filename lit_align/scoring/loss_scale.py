"""What a loss will be multiplied by before its gradients are asked for, where these are made with the loss.

Mixed precision in float16 multiplies the loss by a large number, so that small gradients do not become 0
(Micikevicius et al. 2017, arXiv 1710.03740, 3.2). Autograd sees that number first of all. Gradients that
are made in the forward pass (:mod:`lit_align.scoring.head`) have to know it beforehand.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_scale: ContextVar[float] = ContextVar("lit_align_loss_scale", default=1.0)


@contextmanager
def scaled_losses(scale: float) -> Iterator[None]:
    """Inside the block, gradients that are made with a loss are made of this multiple of it.

    What the caller then asks for is the gradient of ``scale * loss``, as ever:
    ``scaler.scale(loss).backward()``.
    Gradients that the number makes infinite come out infinite, and the scaler takes a smaller one.

    Args:
        scale: ``scaler.get_scale()`` of a :class:`torch.amp.GradScaler`; 1 changes nothing.
    """
    token = _scale.set(scale)
    try:
        yield
    finally:
        _scale.reset(token)


def loss_scale() -> float:
    """The number of the block this is called in; 1 outside of any."""
    return _scale.get()
