"""Mean and deviation of all scores seen so far, to bring rewards of unknown scale to one."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class RunningMoments:
    """Mean and unbiased deviation over everything that was shown, as plain floats.

    Chan, Golub, LeVeque (1983): means and sums of squared deviations of parts, merged exactly.

    Attributes:
        count: how many values there were.
        mean: their mean.
        deviations: sum of their squared deviations from the mean.
    """

    count: float = 0.0
    mean: float = 0.0
    deviations: float = 0.0

    @property
    def std(self) -> float:
        """Unbiased standard deviation; 0 for fewer than two values."""
        return math.sqrt(self.deviations / (self.count - 1)) if self.count > 1 else 0.0

    def update(self, sums: Tensor) -> None:
        """Take more values in.

        Args:
            sums: ``[3]`` count, sum and sum of squares, from
                :func:`lit_align.functional.whitening.moments`, added over processes.

        >>> running = RunningMoments()
        >>> running.update(torch.tensor([2.0, 4.0, 10.0]))
        >>> running.mean, running.std
        (2.0, 1.4142135623730951)
        """
        count, total, squares = sums.tolist()
        if count == 0:
            return
        mean = total / count
        difference = mean - self.mean
        merged = self.count + count
        spread = max(squares - total * mean, 0.0)
        self.deviations += spread + difference**2 * self.count * count / merged
        self.mean += difference * count / merged
        self.count = merged

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint needs."""
        return {"count": self.count, "mean": self.mean, "deviations": self.deviations}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Take up where a checkpoint left."""
        self.count, self.mean, self.deviations = (float(state[k]) for k in ("count", "mean", "deviations"))


def scale_scores(scores: Tensor, running: RunningMoments) -> Tensor:
    """Bring scores to a deviation of about 1, and leave zero where it is.

    ``s / (std + ε)`` with the float32 ε; unchanged until two different scores have been seen, because
    there is no scale before.

    Args:
        scores: ``[C]``.
        running: moments, this batch included.

    Returns:
        ``[C]``.
    """
    return scores / _factor(running)


def normalise_scores(scores: Tensor, running: RunningMoments) -> Tensor:
    """Bring scores to a mean of about 0 and a deviation of about 1.

    ``(s - mean) / (std + ε)`` with the float32 ε; only shifted until two different scores have been seen.

    Args:
        scores: ``[C]``.
        running: moments, this batch included.

    Returns:
        ``[C]``.
    """
    return (scores - running.mean) / _factor(running)


def _factor(running: RunningMoments) -> float:
    return running.std + torch.finfo(torch.float32).eps if running.std > 0 else 1.0
