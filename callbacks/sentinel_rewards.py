"""Checks of rewards, and of the distance that a policy goes for them."""

from collections.abc import Sequence

from lit_align.callbacks.sentinel_check import Check, Seen


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
        share = seen.metrics.get("frac_reward_zero_std")
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
        """Per token: exactly where that is known, else an estimate twice in a row."""
        found = {k: v for k, v in seen.metrics.items() if k == "kl" or k.startswith("kl/")}
        total, length = (seen.metrics.get(k) for k in ("objective/kl", "completions/mean_length"))
        if total is not None and length:
            found["objective/kl per token"] = total / length
        exact = found.get("kl/full")
        per_token = ("kl/full",) if exact is not None else ("kl/k3", "kl", "objective/kl per token")
        high = next(((n, v) for n, v in found.items() if n in per_token and v > 1), None)
        # One token that the reference never expects makes an estimate large, so it is asked twice.
        if high is not None and self._in_a_row(True, 1 if exact is not None else 2):
            return (
                f"{high[0]} is {high[1]:.3g} nats per token. Read samples; a lower learning rate or a larger "
                "beta holds the policy nearer to its reference"
            )
        if found and high is None:
            self.memory = []
        # Of those that follow the policy's own samples alone: on other texts an estimate may be anything.
        if total is None or total >= -1:
            return None
        return (
            f"objective/kl is {total:.3g}; a KL cannot be negative. Look at the sampling: do temperature, "
            "top_p, padding and EOS agree with how log-probs are computed?"
        )


class RatioAtStart(Check):
    """A mean probability ratio away from 1 in the first minibatch after a rollout."""

    name = "ratio_at_start"
    source = (
        "1 by definition, since no step lies between sampling and scoring (a debugging rule of 'The 37 "
        "implementation details of PPO', ICLR blog track 2022); 0.02 leaves room for bf16"
    )

    def look(self, seen: Seen) -> str | None:
        """``ratio/first_mean``."""
        ratio = seen.metrics.get("ratio/first_mean")
        if ratio is None or abs(ratio - 1) <= 0.02:
            return None
        return (
            f"the first minibatch after a rollout has a mean ratio of {ratio:.4g} instead of 1. Look at what "
            "differs between sampling and scoring: dropout, temperature, precision, another engine's "
            "weights that were not synced, or tokens that were encoded again"
        )


class HeldOutReward(Check):
    """The reward that is trained on rises while one that is not falls, over ten looks."""

    name = "held_out_reward"
    source = (
        "over-optimisation of a proxy reward (Gao et al., arXiv 2210.10760, figure 1); rank correlations "
        "with time (Kendall's tau) of 0.7, to which ten random values come once in 900 times"
    )

    def look(self, seen: Seen) -> str | None:
        """Memory: pairs of the two, one after another."""
        if seen.held_out is None:
            return None
        self.memory = [*self.memory, *seen.held_out][-20:]
        trained, other = self.memory[0::2], self.memory[1::2]
        if len(trained) < 10 or kendall_with_time(trained) < 0.7 or kendall_with_time(other) > -0.7:
            return None
        return (
            f"the reward rose from {trained[0]:.3g} to {trained[-1]:.3g} while the held-out one fell from "
            f"{other[0]:.3g} to {other[-1]:.3g}. Read the samples that score best: what do they exploit? An "
            "earlier checkpoint may be the better model; a stronger pull to the reference slows it down"
        )


def kendall_with_time(values: Sequence[float]) -> float:
    """Kendall's rank correlation of values with their order: 1 where they only rise, -1 where they fall.

    >>> kendall_with_time([1, 2, 3]), kendall_with_time([3, 1, 2]), kendall_with_time([1, 1])
    (1.0, -0.3333333333333333, 0.0)
    """
    signs = [(b > a) - (b < a) for i, a in enumerate(values) for b in values[i + 1 :]]
    return sum(signs) / len(signs) if signs else 0.0


def _is_share(name: str) -> bool:
    # An accuracy of 1 may well stay.
    return "accurac" in name or "frac_" in name
