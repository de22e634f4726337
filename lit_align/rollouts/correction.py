"""What undoes a sampler whose probabilities are not quite the trainer's."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass
class SamplerCorrection:
    """Importance weights from the sampler's probabilities to the trainer's.

    Truncated importance sampling (Yao et al. 2025), and masked (IcePop, arXiv 2510.18855): with
    ``ρ = π_trainer / π_sampler``, each token's policy loss is multiplied by ``min(ρ, C)``, or by
    ``ρ [ρ ≤ C]``. The trainer's log-probs of the rollout cost one forward pass.
    """

    kind: Literal["truncate", "mask", "none"] = "mask"
    """Cap weights above ``cap``, leave the tokens out, or (``none``) correct nothing, whatever the generator
    asks for: the policy's ratios are then taken to the sampler's own log-probs."""

    level: Literal["token", "sequence"] = "sequence"
    """A weight per token, or one per completion (the product of its tokens')."""

    cap: float = 3.0
    """C."""

    def __post_init__(self) -> None:
        if self.kind not in ("truncate", "mask", "none") or self.level not in ("token", "sequence"):
            raise ValueError(
                f"correction is {self.kind!r} at level {self.level!r}; "
                "choose truncate, mask or none, at the level of token or sequence"
            )
        if self.cap <= 0:
            raise ValueError(f"correction.cap is {self.cap}; it must be positive")


def correction_for(
    generator: Any, given: SamplerCorrection | Mapping[str, Any] | None
) -> SamplerCorrection | None:
    """What is done about a generator: what was said, or else what the generator itself asks for.

    Args:
        generator: one in another process computes a little differently, and has a ``default_correction``.
        given: by the user; ``None`` where nothing was said.

    Returns:
        ``None`` where nothing is corrected.
    """
    found = given if given is not None else getattr(generator, "default_correction", None)
    if isinstance(found, Mapping):
        found = SamplerCorrection(**found)
    return None if found is None or found.kind == "none" else found
