"""What undoes a sampler whose probabilities are not quite the trainer's."""

from dataclasses import dataclass
from typing import Literal


@dataclass
class SamplerCorrection:
    """Importance weights from the sampler's probabilities to the trainer's.

    Truncated importance sampling (Yao et al. 2025), and masked (IcePop, arXiv 2510.18855): with
    ``ρ = π_trainer / π_sampler``, each token's policy loss is multiplied by ``min(ρ, C)``, or by
    ``ρ [ρ ≤ C]``. The trainer's log-probs of the rollout cost one forward pass.
    """

    kind: Literal["truncate", "mask"] = "mask"
    """Cap weights above ``cap``, or leave the tokens out."""

    level: Literal["token", "sequence"] = "sequence"
    """A weight per token, or one per completion (the product of its tokens')."""

    cap: float = 3.0
    """C."""

    def __post_init__(self) -> None:
        if self.kind not in ("truncate", "mask") or self.level not in ("token", "sequence"):
            raise ValueError(
                f"correction is {self.kind!r} at level {self.level!r}; "
                "choose truncate or mask, at the level of token or sequence"
            )
        if self.cap <= 0:
            raise ValueError(f"correction.cap is {self.cap}; it must be positive")
