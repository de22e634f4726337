"""What ruins runs in silence, each as a check of numbers that a run has anyway.

A check sees one `Seen` at a time and answers with a message or with nothing. A message says what was found,
and what to look at. ``source`` says where the threshold comes from.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median


@dataclass(frozen=True)
class Seen:
    """What one look at a run finds; ``None`` where this look has no such number.

    Attributes:
        loss: of the last micro-batch.
        learned: tokens of the last micro-batch that weigh something in the loss.
        metrics: of training, by their names without the stage; empty where none was logged since.
        grad_norm: over all trained weights, before clipping.
        texts: token ids of completions of fixed prompts.
    """

    loss: float | None = None
    learned: int | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    grad_norm: float | None = None
    texts: Sequence[Sequence[int]] | None = None


class Check(ABC):
    """One thing to look out for. What it remembers is a list of numbers."""

    name: str
    source: str

    def __init__(self) -> None:
        self.memory: list[float] = []

    @abstractmethod
    def look(self, seen: Seen) -> str | None:
        """A message where something is wrong."""

    def _in_a_row(self, wrong: bool, times: int) -> bool:
        self.memory = [*self.memory, 1.0] if wrong else []
        return len(self.memory) >= times


class ZeroLoss(Check):
    """Three losses of exactly 0."""

    name = "zero_loss"
    source = "a mean of log-probs is 0 only if no token counts, or all have probability 1 in float32"

    def look(self, seen: Seen) -> str | None:
        """Exactly 0 in a row."""
        if seen.loss is None or not self._in_a_row(seen.loss == 0, 3):
            return None
        return "the loss is exactly 0. Look at the labels of a batch: is every token masked?"


class AllMasked(Check):
    """A batch in which no token is learned."""

    name = "all_masked"
    source = "by definition: nothing can be learned from it"

    def look(self, seen: Seen) -> str | None:
        """No token that weighs something."""
        if seen.learned != 0:
            return None
        return (
            "a batch has no token to learn. Look at the mask (completion only? another chat template?), and "
            "at max_length: prompts longer than it leave no room for completions"
        )


class NotFinite(Check):
    """A loss, gradient or metric that is no number."""

    name = "not_finite"
    source = "by definition"

    def look(self, seen: Seen) -> str | None:
        """NaN or infinite."""
        numbers = {"the loss": seen.loss, "the gradient norm": seen.grad_norm, **seen.metrics}
        bad = [name for name, value in numbers.items() if value is not None and not math.isfinite(value)]
        if not bad:
            return None
        return (
            f"{', '.join(bad)}: not a finite number. Look at the last batches (empty completions, no "
            "learned token), the learning rate, and the precision (bf16 instead of fp16)"
        )


class ConstantRewards(Check):
    """Rewards that are the same to the last bit, five looks in a row."""

    name = "constant_rewards"
    source = "means of rewards of other texts differ in their last bits, unless the reward ignores the text"

    def look(self, seen: Seen) -> str | None:
        """Every reward as it was."""
        rewards = [v for k, v in sorted(seen.metrics.items()) if "reward" in k and not _is_share(k)]
        if not rewards:
            return None
        same = self.memory[1:] == rewards
        self.memory = [self.memory[0] + 1 if same else 1.0, *rewards]
        if self.memory[0] < 5:
            return None
        return (
            f"the rewards have not changed ({rewards[0]:g}). Look at what the reward is given, and at what "
            "it answers to a good and to a bad text; are any weights trained at all?"
        )


class GroupsWithoutSpread(Check):
    """All groups have equal rewards, three looks in a row."""

    name = "groups_without_spread"
    source = "an advantage within a group of equal rewards is 0 (DAPO, arXiv 2503.14476, section 3.2)"

    def look(self, seen: Seen) -> str | None:
        """TRL's ``frac_reward_zero_std``."""
        share = _named(seen, "frac_reward_zero_std")
        if share is None or not self._in_a_row(share >= 1, 3):
            return None
        return (
            "no group has two different rewards, so there is nothing to learn. Look at the tasks: all "
            "solved, or all too hard? A higher temperature or more completions per prompt spread them"
        )


class KLRange(Check):
    """A KL divergence per token that is large, or an estimate that is far below zero."""

    name = "kl_range"
    source = (
        "below -1: TRL's warning, since samples of the policy cannot give it; above 1 nat per token: our own "
        "choice, where the reference finds each token e times less likely"
    )

    def look(self, seen: Seen) -> str | None:
        """Per-token metrics only: sums over sequences grow with their length."""
        for name in ("kl/full", "kl/k3", "kl"):
            value = seen.metrics.get(name)
            if value is not None and value > 1:
                return (
                    f"{name} is {value:.3g} nats per token. Read samples; a lower learning rate or a larger "
                    "beta holds the policy nearer to its reference"
                )
        low = {k: v for k, v in seen.metrics.items() if (k == "kl" or k.startswith("kl/")) and v < -1}
        low |= {k: v for k, v in seen.metrics.items() if k == "objective/kl" and v < -1}
        if not low:
            return None
        name, value = next(iter(low.items()))
        return (
            f"{name} is {value:.3g}; a KL cannot be negative. Look at the sampling: do temperature, top_p, "
            "padding and EOS agree with how log-probs are computed?"
        )


class EntropyCollapse(Check):
    """Entropy below a twentieth of its start and below 0.05 nats, three looks in a row."""

    name = "entropy_collapse"
    source = "without entropy nothing is explored (arXiv 2505.22617); the numbers are our own choice"

    def __init__(self) -> None:
        super().__init__()
        self.memory = [0.0]

    def look(self, seen: Seen) -> str | None:
        """Memory: looks in a row, and the entropies of the first five."""
        entropy = _named(seen, "entropy")
        if entropy is None:
            return None
        count, *first = self.memory
        if len(first) < 5:
            self.memory = [0.0, *first, entropy]
            return None
        start = median(first)
        self.memory = [count + 1 if entropy < min(0.05, start / 20) else 0.0, *first]
        if self.memory[0] < 3:
            return None
        return (
            f"the entropy fell from {start:.3g} to {entropy:.3g} nats. Read several samples of one prompt: "
            "are they the same? An entropy bonus, a larger beta or a lower learning rate keep it up"
        )


class GradientSpike(Check):
    """A gradient norm ten times the median of the last 50 looks."""

    name = "gradient_spike"
    source = "spikes come from a few batches (PaLM, arXiv 2204.02311, section 5.1); ten is our own choice"

    def look(self, seen: Seen) -> str | None:
        """After ten looks."""
        norm = seen.grad_norm
        if norm is None or not math.isfinite(norm):
            return None
        usual = median(self.memory) if len(self.memory) >= 10 else math.inf
        self.memory = [*self.memory[-49:], norm]
        if norm <= 10 * usual or usual == 0:
            return None
        return (
            f"the gradient norm is {norm:.3g}, {norm / usual:.0f} times the usual {usual:.3g}. Look at the "
            "rows of this batch; gradient_clip_val limits what one batch can do"
        )


class LengthDrift(Check):
    """Completions twice, or half, as long as at the first three looks."""

    name = "length_drift"
    source = "much of what RLHF gains is length (arXiv 2310.03716); a factor of two is our own choice"

    def look(self, seen: Seen) -> str | None:
        """From completions of fixed prompts, else from the metric."""
        length = _named(seen, "completions/mean_length")
        if seen.texts:
            length = sum(map(len, seen.texts)) / len(seen.texts)
        if length is None:
            return None
        if len(self.memory) < 3:
            self.memory.append(length)
            return None
        start = median(self.memory)
        if start / 2 <= length <= start * 2:
            return None
        return (
            f"completions have {length:.0f} tokens, {start:.0f} at the start. Look at the longest ones, and "
            "at the reward against the length; do they still end with EOS?"
        )


class Repetition(Check):
    """More than half of the 4-grams of the completions stand in them before."""

    name = "repetition"
    source = "seq-rep-4 of arXiv 1908.04319, near 0 in human text; one half is our own choice"

    def look(self, seen: Seen) -> str | None:
        """From completions of fixed prompts."""
        if not seen.texts:
            return None
        shares = [repeated_share(ids) for ids in seen.texts if len(ids) >= 8]
        if not shares or sum(shares) / len(shares) <= 0.5:
            return None
        return (
            f"{sum(shares) / len(shares):.0%} of the 4-grams of greedy completions are repetitions. Read "
            "them; was EOS learned (is it masked, or cut off by max_length)? Is the learning rate too high?"
        )


def repeated_share(ids: Sequence[int], length: int = 4) -> float:
    """Share of n-grams that stand before in the same text.

    Args:
        ids: tokens.
        length: of the n-grams.

    >>> repeated_share([1, 2, 1, 2, 1, 2, 1])
    0.5
    """
    grams = [tuple(ids[i : i + length]) for i in range(len(ids) - length + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


#: All checks, by name.
CHECKS: dict[str, Callable[[], Check]] = {
    check.name: check
    for check in (
        ZeroLoss,
        AllMasked,
        NotFinite,
        ConstantRewards,
        GroupsWithoutSpread,
        KLRange,
        EntropyCollapse,
        GradientSpike,
        LengthDrift,
        Repetition,
    )
}


def _named(seen: Seen, name: str) -> float | None:
    return seen.metrics.get(name)


def _is_share(name: str) -> bool:
    # An accuracy of 1 may well stay.
    return "accurac" in name or "frac_" in name
