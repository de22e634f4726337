"""What on-policy algorithms make of scores before they are advantages: penalties, scales and limits."""

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from lit_align.functional.kl import KL_ESTIMATORS
from lit_align.functional.kl_control import AdaptiveKL, FixedKL
from lit_align.functional.running_moments import RunningMoments, normalise_scores, scale_scores
from lit_align.functional.token_rewards import clip_scores, penalise_missing_eos
from lit_align.functional.whitening import moments

KLName = Literal["k1", "k2", "k3", "abs", "full"]


@dataclass
class KLPenalty:
    """What it costs to leave the reference, as a part of each token's reward."""

    coefficient: float = 0.05
    """β, at the start; 0 switches the penalty off."""

    estimator: KLName = "k1"
    """How the divergence of a token is estimated; ``full`` sums over the vocabulary, for one forward more."""

    target: float | None = None
    """Divergence per completion, in nats, that the coefficient is steered to; fixed where it is not given."""

    horizon: float = 10_000
    """With ``target``: completions over which an error of 1 changes the coefficient by its own size."""

    def __post_init__(self) -> None:
        if self.estimator not in (*KL_ESTIMATORS, "full"):
            raise ValueError(
                f"kl.estimator is {self.estimator!r}; choose one of {', '.join(KL_ESTIMATORS)}, full"
            )
        if self.coefficient < 0:
            raise ValueError(f"kl.coefficient is {self.coefficient}; it must not be negative")
        if self.target is not None and self.coefficient == 0:
            raise ValueError("kl.target steers the coefficient by factors, so it cannot start from 0")

    def control(self) -> FixedKL | AdaptiveKL:
        """The controller that these settings describe."""
        if self.target is None:
            return FixedKL(self.coefficient)
        return AdaptiveKL(self.coefficient, target=self.target, horizon=self.horizon)


@dataclass
class ScoreShaping:
    """What is done to the score of a completion before the KL penalty joins it."""

    scaling: Literal["none", "scale", "normalise"] = "none"
    """Divide by the running deviation of all scores so far, or also take their running mean away."""

    clip: float | None = None
    """Hold scores between minus and plus this."""

    missing_eos_penalty: float | None = None
    """Taken off the score of a completion that was cut off at its limit."""

    whiten_rewards: bool = False
    """Bring the rewards of tokens to variance 1 over the rollout, their mean kept."""

    def __post_init__(self) -> None:
        if self.scaling not in ("none", "scale", "normalise"):
            raise ValueError(f"scores.scaling is {self.scaling!r}; choose none, scale or normalise")


class ScoreShaper:
    """Applies :class:`ScoreShaping`, and remembers the scores it has seen."""

    def __init__(self, shaping: ScoreShaping) -> None:
        self.shaping = shaping
        self.running = RunningMoments()

    def __call__(self, scores: Tensor, finished: Tensor, sum_over_ranks: Any) -> Tensor:
        """Shaped scores ``[C]``; NaN (unscored) stays NaN and is in no moment.

        Args:
            scores: ``[C]``.
            finished: ``[C]`` bool, whether the completion came to its end.
            sum_over_ranks: adds sums over processes.
        """
        shaping = self.shaping
        # A part of the reward like any other, so that scaling and clipping see it as well.
        if shaping.missing_eos_penalty is not None:
            scores = penalise_missing_eos(scores, finished, penalty=shaping.missing_eos_penalty)
        if shaping.scaling != "none":
            self.running.update(sum_over_ranks(moments(scores, ~scores.isnan())))
            scores = (scale_scores if shaping.scaling == "scale" else normalise_scores)(scores, self.running)
        return scores if shaping.clip is None else clip_scores(scores, limit=shaping.clip)
