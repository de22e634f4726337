"""What ruins runs in silence, each as a check of numbers that a run has anyway."""

import math
from collections.abc import Callable, Sequence
from statistics import median

from lit_align.callbacks.sentinel_check import Check, Seen
from lit_align.callbacks.sentinel_rewards import (
    ConstantRewards,
    GroupsWithoutSpread,
    HeldOutReward,
    KLRange,
    RatioAtStart,
)


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
        # An extreme over nothing (no completion that ended) is infinite, and nothing is wrong.
        metrics = {k: v for k, v in seen.metrics.items() if not (_is_extreme(k) and math.isinf(v))}
        numbers = {"the loss": seen.loss, "the gradient norm": seen.grad_norm, **metrics}
        bad = [name for name, value in numbers.items() if value is not None and not math.isfinite(value)]
        if not bad:
            return None
        return (
            f"{', '.join(bad)}: not a finite number. Look at the last batches (empty completions, no "
            "learned token), the learning rate, and the precision (bf16 instead of fp16)"
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
        entropy = seen.metrics.get("entropy", seen.metrics.get("policy/entropy_avg"))
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
    """A gradient norm ten times the median of the last 50 looks, and five times the largest of them."""

    name = "gradient_spike"
    source = (
        "spikes come from a few batches (PaLM, arXiv 2204.02311, section 5.1); the numbers are our own "
        "choice: healthy runs of ppo.yaml and grpo.yaml reach 17 times their median, 2.8 times their largest"
    )

    def look(self, seen: Seen) -> str | None:
        """After ten looks."""
        norm = seen.grad_norm
        if norm is None or not math.isfinite(norm):
            return None
        before, self.memory = self.memory, [*self.memory[-49:], norm]
        usual = median(before) if len(before) >= 10 else math.inf
        if usual == 0 or norm <= max(10 * usual, 5 * max(before, default=0)):
            return None
        return (
            f"the gradient norm is {norm:.3g}; usual is {usual:.3g}, the largest so far {max(before):.3g}. "
            "Look at the rows of this batch; gradient_clip_val limits what one batch can do"
        )


class LengthDrift(Check):
    """Completions twice, or half, as long as at the first three looks, and by more than 8 tokens."""

    name = "length_drift"
    source = (
        "much of what RLHF gains is length (arXiv 2310.03716); a factor of two is our own choice, and so are "
        "8 tokens: greedy completions of 3 tokens grow to 6 in a healthy run of ppo.yaml"
    )

    def look(self, seen: Seen) -> str | None:
        """From completions of fixed prompts, else the metric; memory: which of the two, and the first."""
        length = seen.metrics.get("completions/mean_length")
        if seen.texts:
            length = sum(map(len, seen.texts)) / len(seen.texts)
        fixed = float(bool(seen.texts))
        if length is None or (self.memory and fixed < self.memory[0]):
            return None
        if not self.memory or fixed > self.memory[0]:
            self.memory = [fixed]
        _, *first = self.memory
        if len(first) < 3:
            self.memory.append(length)
            return None
        start = median(first)
        if start / 2 <= length <= start * 2 or abs(length - start) <= 8:
            return None
        return (
            f"completions have {length:.0f} tokens, {start:.0f} at the start. Look at the longest ones, and "
            "at the reward against the length; do they still end with EOS?"
        )


class Repetition(Check):
    """More than half of the 4-grams of a completion stand in it before, on average over the completions."""

    name = "repetition"
    source = "seq-rep-4 of arXiv 1908.04319, near 0 in human text; one half is our own choice"

    def look(self, seen: Seen) -> str | None:
        """From completions of fixed prompts."""
        if not seen.texts:
            return None
        # A text of a few tokens repeats nothing, and one among many that does is no collapse.
        shares = [repeated_share(ids) if len(ids) >= 8 else 0.0 for ids in seen.texts]
        if sum(shares) / len(shares) <= 0.5:
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


def _is_extreme(name: str) -> bool:
    return name.rpartition("/")[2].startswith(("min_", "max_"))


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
        RatioAtStart,
        EntropyCollapse,
        GradientSpike,
        LengthDrift,
        Repetition,
        HeldOutReward,
    )
}
