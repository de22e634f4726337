"""REINFORCE leave-one-out."""

from lit_align.algorithms.base import LossAverage, TokenizerLike
from lit_align.algorithms.hparams import plain_arguments
from lit_align.algorithms.on_policy import OnPolicy
from lit_align.algorithms.optim import OptimConfig
from lit_align.algorithms.policy_step import (
    group_experience,
    surrogate,
    without_truncated,
)
from lit_align.algorithms.rollout_metrics import judged
from lit_align.batches import Forest
from lit_align.functional.advantages import advantage_estimator
from lit_align.functional.group_advantages import weighted_rewards
from lit_align.functional.kl import k1
from lit_align.losses.policy import PolicyObjective
from lit_align.models.config import PolicyLike
from lit_align.outputs import LossOutput, Metric, Scores
from lit_align.rollouts.correction import SamplerCorrection
from lit_align.rollouts.generator import Generator
from lit_align.rollouts.reward_set import RewardResult, RewardsLike
from lit_align.rollouts.sampling import Sampling
from lit_align.scoring.references import Reference


class RLOO(OnPolicy):
    """RLOO (Ahmadian et al. 2024, arXiv 2402.14740): a completion is one action, judged against its siblings.

    ``r = score - β Σ_t (log π_old - log π_ref)``, and the advantage is ``r`` less the mean of the other
    completions of the same prompt. The ratio is that of the whole completion, clipped as PPO's.

    Args:
        policy: Hub name, directory, description, or a module in memory.
        tokenizer: name, directory or object; by default the policy's own.
        reference: what the policy is held to; by default the policy as it was built.
        rewards: a function, a model, an adapter, or several with weights; see
            :class:`lit_align.rollouts.reward_set.RewardSet`.
        sampling: how completions are sampled.
        generator: what samples them; by default this package's own.
        completions: completions per prompt, at least 2.
        num_epochs: passes over each rollout.
        num_minibatches: optimiser steps per pass (with accumulation: micro-batches).
        beta: weight of the KL in the reward.
        clip_range: ε of the clipping.
        clip_range_high: ε of the upper bound; the same where it is ``None``.
        normalise_advantages: bring advantages to mean 0 and deviation 1 over the rollout.
        reward_clip: lowest and highest reward, before the KL joins them.
        mask_truncated: leave completions that were cut off at their limit out of the loss.
        correction: weights against the difference between sampler and trainer.
        target_kl: pass over the rest of a rollout when the policy has moved by 1.5 times this from the one
            that sampled, in nats per token.
        lr: learning rate at the end of the warm-up.
        optim: optimiser and schedule.
        loss_average: see :class:`AlignModule`.
    """

    def __init__(
        self,
        policy: PolicyLike = None,
        tokenizer: TokenizerLike = None,
        reference: Reference | None = None,
        rewards: RewardsLike = None,
        sampling: Sampling | None = None,
        generator: Generator | None = None,
        completions: int = 2,
        num_epochs: int = 1,
        num_minibatches: int = 1,
        beta: float = 0.05,
        clip_range: float = 0.2,
        clip_range_high: float | None = None,
        normalise_advantages: bool = False,
        reward_clip: tuple[float, float] | None = None,
        mask_truncated: bool = False,
        correction: SamplerCorrection | None = None,
        target_kl: float | None = None,
        lr: float = 1e-6,
        optim: OptimConfig | None = None,
        loss_average: LossAverage = "window",
    ) -> None:
        arguments = plain_arguments(locals())
        super().__init__(
            policy=policy,
            tokenizer=tokenizer,
            reference=reference,
            rewards=rewards,
            sampling=sampling,
            generator=generator,
            completions=completions,
            num_epochs=num_epochs,
            num_minibatches=num_minibatches,
            correction=correction,
            target_kl=target_kl,
            lr=lr,
            optim=optim,
            loss_average=loss_average,
        )
        self.save_hyperparameters(arguments)
        if completions < 2:
            raise ValueError("RLOO compares the completions of a prompt: completions must be at least 2")
        self.beta = beta
        self.reward_clip = reward_clip
        self.mask_truncated = mask_truncated
        self.objective = PolicyObjective("rloo", clip_range=clip_range, clip_range_high=clip_range_high)
        self.estimator = advantage_estimator(
            "leave_one_out_normalised" if normalise_advantages else "leave_one_out"
        )

    @property
    def uses_reference(self) -> bool:
        """Whether the KL to a reference is a part of the reward."""
        return self.beta > 0

    def experience(self, rollout: Forest, rewarded: RewardResult) -> tuple[Forest, dict[str, Metric]]:
        """Each completion against the mean of the others."""
        columns, mask = rollout.token_columns, rollout.weights
        rewards = weighted_rewards(rewarded.table, rewarded.weights)
        if self.reward_clip is not None:
            low, high = self.reward_clip
            rewards = rewards.clamp(low, high)
        metrics = {}
        if self.uses_reference:
            each = k1(columns["old_logps"], columns["reference_logps"]) * (mask != 0)
            kl = rollout.sum_per_completion(each)
            metrics = {"kl": Metric.mean(each, mask), "objective/kl": Metric.mean(kl, judged(rollout))}
            rewards = rewards - self.beta * kl
        rollout = group_experience(
            rollout, rewarded, self.estimator, {}, self.sum_over_ranks, rewards=rewards
        )
        return without_truncated(rollout) if self.mask_truncated else rollout, metrics

    def loss(self, scores: Scores, batch: Forest) -> LossOutput:
        """Sum over completions of the clipped surrogate, and their number."""
        return surrogate(self.objective, scores, batch, fresh=self.buffer.updates == 0)
