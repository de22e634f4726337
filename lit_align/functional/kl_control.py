"""Coefficients that follow a goal: how much the KL penalty, or the entropy bonus, weighs next.

Plain data: each has a ``state_dict`` of floats for the checkpoint, and no tensors.
"""

import math
from dataclasses import dataclass


@dataclass
class FixedKL:
    """A KL coefficient that stays.

    Attributes:
        value: the coefficient.
    """

    value: float

    def update(self, kl: float, samples: int) -> None:
        """Nothing follows from what was measured."""

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint needs."""
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Nothing is restored: a coefficient given now beats one of a checkpoint."""


@dataclass
class AdaptiveKL:
    """A KL coefficient that grows while the divergence is above its target, and shrinks below.

    Ziegler et al. (arXiv 1909.08593) Eq. 2-3: ``e = clip(KL/target - 1, -0.2, 0.2)``,
    ``β ← β (1 + e n/horizon)``. (The paper's ``K_β = 0.1`` is ``n/horizon`` here.)

    Attributes:
        value: the coefficient now; at construction, at the start.
        target: KL per completion to hold, in nats.
        horizon: number of samples over which an error of 1 would change the coefficient by its own size.
    """

    value: float = 0.2
    target: float = 6.0
    horizon: float = 10_000

    def __post_init__(self) -> None:
        if self.target <= 0 or self.horizon <= 0:
            raise ValueError(
                f"AdaptiveKL: target and horizon must be positive, got {self.target} and {self.horizon}"
            )

    def update(self, kl: float, samples: int) -> None:
        """Move the coefficient after a rollout.

        Args:
            kl: mean KL per completion, in nats.
            samples: completions it was measured on, of all processes.

        Raises:
            ValueError: where the KL is not finite; the coefficient would never come back.

        >>> control = AdaptiveKL(0.2, target=6.0, horizon=10_000)
        >>> control.update(12.0, 128)
        >>> round(control.value, 6)
        0.200512
        """
        if not math.isfinite(kl):
            raise ValueError(
                f"AdaptiveKL: the measured KL is {kl}; the policy or the reference has broken down"
            )
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        self.value *= 1 + error * samples / self.horizon

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint needs."""
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Take the coefficient of a checkpoint; target and horizon are configuration and stay."""
        self.value = float(state["value"])


@dataclass
class AdaptiveEntropy:
    """An entropy coefficient that rises while the entropy is below its target.

    Skywork-OR1 (arXiv 2505.22312), adaptive entropy control: ``c ← c + Δ`` where the entropy is below the
    target, ``c - Δ`` otherwise; the bonus is used only while the entropy is not above the target.

    Attributes:
        target: entropy per token to hold, in nats.
        step: Δ, by how much the coefficient changes per update.
        highest: the coefficient stays between 0 and this.
        coefficient: ``c``.
        active: whether the last entropy was at or below the target.
    """

    target: float
    step: float = 0.005
    highest: float = 1.0
    coefficient: float = 0.0
    active: bool = False

    @property
    def value(self) -> float:
        """The coefficient to use now."""
        return self.coefficient if self.active else 0.0

    def update(self, entropy: float) -> None:
        """Move the coefficient after an update.

        Args:
            entropy: mean entropy per token, in nats.

        Raises:
            ValueError: where the entropy is not finite.
        """
        if not math.isfinite(entropy):
            raise ValueError(
                f"AdaptiveEntropy: the measured entropy is {entropy}; the policy has broken down"
            )
        change = self.step if entropy < self.target else -self.step
        self.coefficient = min(max(self.coefficient + change, 0.0), self.highest)
        self.active = entropy <= self.target

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint needs."""
        return {"coefficient": self.coefficient, "active": float(self.active)}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Take the coefficient of a checkpoint; target and step are configuration and stay."""
        self.coefficient = float(state["coefficient"])
        self.active = bool(state["active"])
