"""Group relative policy optimisation and its family."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lit_align.algorithms.base import LossAverage, TokenizerLike
from lit_align.algorithms.group_sampling import DynamicSampling, ReplayBuffer, with_present_reference
from lit_align.algorithms.hparams import plain_arguments
from lit_align.algorithms.on_policy import OnPolicy
from lit_align.algorithms.optim import OptimConfig
from lit_align.algorithms.policy_step import (
    clip_metrics,
    decisions,
    group_experience,
    policy_loss,
    step_metrics,
    without_truncated,
)
from lit_align.algorithms.rollout_state import dealt
from lit_align.batches import Forest
from lit_align.functional.advantages import advantage_estimator
from lit_align.functional.kl import importance_corrected, k3
from lit_align.functional.kl_control import AdaptiveEntropy
from lit_align.losses.policy import Decisions, PolicyObjective
from lit_align.losses.policy import policy_loss as loss_of
from lit_align.losses.policy_masks import entropy_threshold, high_entropy_mask, off_policy_mask
from lit_align.models.config import PolicyLike
from lit_align.outputs import LossOutput, Metric, Scores
from lit_align.rollouts.correction import SamplerCorrection
from lit_align.rollouts.generator import Generator
from lit_align.rollouts.reward_set import RewardResult, RewardsLike
from lit_align.rollouts.sampling import Sampling
from lit_align.runtime.data_place import values_of_all
from lit_align.scoring.references import Reference


class GRPO(OnPolicy):
    """GRPO (Shao et al. 2024, arXiv 2402.03300) and those that differ from it in loss, level or advantage.

    A prompt gets a group of completions; the advantage of one is its reward less the group's mean, in the
    group's deviations. No critic.

    Args:
        policy: Hub name, directory, description, or a module in memory.
        tokenizer: name, directory or object; by default the policy's own.
        reference: what the policy is held to, with ``beta``; by default the policy as it was built.
        rewards: a function, a model, an adapter, or several with weights; see
            :class:`lit_align.rollouts.reward_set.RewardSet`.
        sampling: how completions are sampled.
        generator: what samples them; by default this package's own.
        completions: completions per prompt, ``G``, at least 2.
        num_epochs: passes over each rollout (μ).
        num_minibatches: optimiser steps per pass (with accumulation: micro-batches).
        loss: a name of :data:`lit_align.losses.policy.POLICY_LOSSES` (``grpo``, ``dr_grpo``, ``dapo``,
            ``bnpo``, ``gspo``, ``cispo``, ``sapo``, ``luspo``, ``vespo``), or a function of your own.
        clip_range: ε, for losses that clip; their paper's where it is ``None``.
        clip_range_high: ε of the upper bound (clip-higher).
        delta: upper bound of the ratio of bad tokens (two-sided clipping).
        loss_options: further hyper-parameters of the loss, by name.
        importance: level of the ratios: ``token``, ``sequence`` (GSPO), ``sequence_token``; by default the
            loss's own.
        normaliser: how tokens are weighed; the loss's own by default.
        advantages: a name of :data:`lit_align.functional.advantages.ADVANTAGE_ESTIMATORS`
            (``group_normalised``, ``batch_normalised``, ``group_mean``, ``gdpo`` …), or a function of your
            own.
        advantage_options: hyper-parameters of the estimator, by name.
        beta: weight of the KL to the reference (k3) in the loss; 0 needs no reference.
        kl_correction: make the KL estimate, on tokens of the old policy, one of the present policy.
        mask_truncated: leave completions that were cut off at their limit out of the loss (DAPO's overlong
            filtering).
        top_entropy: learn from this share of the tokens of each minibatch, over all processes: those with
            the highest entropy.
        entropy_coefficient: weight of the entropy bonus.
        entropy_target: steer the entropy bonus to this many nats per token instead.
        off_policy_threshold: leave out bad completions from which the policy has moved away by this much, in
            nats per token.
        dynamic_sampling: groups to fill with prompts of the batch whose rewards have spread (DAPO).
        replay: groups to keep, and put in the place of groups without spread.
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
        completions: int = 8,
        num_epochs: int = 1,
        num_minibatches: int = 1,
        loss: str | Callable[..., Tensor] = "dapo",
        clip_range: float | None = None,
        clip_range_high: float | None = None,
        delta: float | None = None,
        loss_options: dict[str, float] | None = None,
        importance: str | None = None,
        normaliser: str | None = None,
        advantages: str | Callable[..., Tensor] = "group_normalised",
        advantage_options: dict[str, float] | None = None,
        beta: float = 0.0,
        kl_correction: bool = True,
        mask_truncated: bool = False,
        top_entropy: float = 1.0,
        entropy_coefficient: float = 0.0,
        entropy_target: float | None = None,
        off_policy_threshold: float | None = None,
        dynamic_sampling: int | None = None,
        replay: int = 0,
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
            raise ValueError(
                f"completions is {completions}; a group needs at least 2, or every advantage is 0"
            )
        if not 0 < top_entropy <= 1:
            raise ValueError(f"top_entropy is {top_entropy}; it is a share of the tokens, above 0 up to 1")
        if entropy_target is not None and entropy_coefficient:
            raise ValueError("give entropy_coefficient (fixed) or entropy_target (steered), not both")
        self.objective = PolicyObjective(
            loss,
            importance=importance,
            normaliser=normaliser,
            length=self.sampling.max_new_tokens if _is_constant(loss, normaliser) else None,
            clip_range=clip_range,
            clip_range_high=clip_range_high,
            delta=delta,
            **(loss_options or {}),
        )
        self.estimator = advantage_estimator(advantages)
        if self.estimator.needs_values:
            raise ValueError(f"advantages: {advantages!r} needs a critic, which GRPO does not have; use PPO")
        self.advantage_options = advantage_options or {}
        self.beta = beta
        self.kl_correction = kl_correction
        self.mask_truncated = mask_truncated
        self.top_entropy = top_entropy
        self.entropy_coefficient = entropy_coefficient
        self.entropy_control = None if entropy_target is None else AdaptiveEntropy(entropy_target)
        self.off_policy_threshold = off_policy_threshold
        self.dynamic_sampling = DynamicSampling(dynamic_sampling) if dynamic_sampling else None
        self.replay = ReplayBuffer(replay) if replay else None
        self._entropies: list[Metric] = []

    @property
    def uses_reference(self) -> bool:
        """Whether the KL to a reference is in the loss."""
        return self.beta > 0

    # -- rollouts --------------------------------------------------------------------------------

    def rollout(self, prompts: Forest) -> tuple[Forest, dict[str, Metric]]:
        """A rollout; with dynamic sampling, of as many prompts as it takes."""
        if self.dynamic_sampling is None:
            return super().rollout(prompts)
        self.hand_over()
        return self.dynamic_sampling(self, prompts)

    def experience(self, rollout: Forest, rewarded: RewardResult) -> tuple[Forest, dict[str, Metric]]:
        """Each completion against its group."""
        rollout = group_experience(
            rollout, rewarded, self.estimator, self.advantage_options, self.sum_over_ranks
        )
        if self.mask_truncated:
            rollout = without_truncated(rollout)
        if self.replay is not None:
            rollout = self.replay.exchange(rollout, self.seed, self.rollouts)
            rollout = with_present_reference(self, rollout) if self.uses_reference else rollout
        return rollout, {}

    # -- loss ------------------------------------------------------------------------------------

    @property
    def entropy_bonus(self) -> float:
        """Weight of the entropy in the loss now."""
        return self.entropy_coefficient if self.entropy_control is None else self.entropy_control.value

    def score_options(self, logging: bool) -> dict[str, Any]:
        """The entropy where something depends on it, or on steps that log."""
        needed = self.entropy_control is not None or self.entropy_coefficient or self.top_entropy < 1
        return {
            "statistics": frozenset({"entropy"} if logging or needed else set()),
            "temperature": self.temperature,
            # A quantile is one of the whole minibatch.
            "couples_batch": self.top_entropy < 1,
        }

    def loss(self, scores: Scores, batch: Forest) -> LossOutput:
        """Sum of the loss over tokens, weighed as the loss says, and what it is divided by."""
        fresh = self.buffer.updates == 0
        tokens = decisions(scores, batch, fresh=fresh)
        metrics = step_metrics(tokens, scores, batch, fresh=fresh) | clip_metrics(self.objective, tokens)
        extra = None
        if self.beta:
            extra = self.beta * self._kl(tokens, batch)
            metrics["kl"] = Metric.mean(extra / self.beta, tokens.mask)
        if self.entropy_bonus:
            assert scores.entropy is not None
            bonus = -self.entropy_bonus * scores.entropy
            extra = bonus if extra is None else extra + bonus
        output = policy_loss(self.objective, tokens, batch, kept=self._kept(tokens, scores), extra=extra)
        if scores.entropy is not None:
            metrics["entropy"] = metrics["policy/entropy_avg"]
        return output._replace(metrics=output.metrics | metrics)

    def _kl(self, tokens: Decisions, batch: Forest) -> Tensor:
        kl = k3(tokens.logps, batch.token_columns["reference_logps"])
        return (
            importance_corrected(kl, self.objective.at_own_level(tokens).ratios) if self.kl_correction else kl
        )

    def _kept(self, tokens: Decisions, scores: Scores) -> Tensor | None:
        kept = None
        if self.top_entropy < 1:
            assert scores.entropy is not None
            # By hand each process is on its own, and need not be here when another is.
            gather = None if self._trainer is None else partial(values_of_all, self.trainer)
            threshold = entropy_threshold(scores.entropy, tokens.mask, top=self.top_entropy, gather=gather)
            kept = high_entropy_mask(scores.entropy, tokens.mask, threshold)
        if self.off_policy_threshold is not None:
            given = (tokens.logps, tokens.old_logps, tokens.advantages, tokens.mask, tokens.sequence)
            near = off_policy_mask(*given, tokens.completions, threshold=self.off_policy_threshold)
            kept = near if kept is None else kept & near
        return kept

    def _run(self, batch: Forest, logging: bool) -> LossOutput:
        output = super()._run(batch, logging)
        if self.entropy_control is not None:
            value = torch.tensor([self.entropy_control.value], device=output.total.device)
            output.metrics["entropy_coef"] = Metric.mean(value)
        return output

    def observe(self, output: LossOutput) -> None:
        """Keep also the entropy."""
        super().observe(output)
        if self.entropy_control is not None:
            self._entropies.append(output.metrics["entropy"])

    def forget_minibatch(self) -> None:
        """Also its entropy, which is not to steer the bonus."""
        super().forget_minibatch()
        self._entropies = []

    def after_update(self) -> None:
        """Also steer the entropy bonus."""
        super().after_update()
        if self.entropy_control is None:
            return
        sums = torch.stack([torch.stack((m.value.float(), m.weight.float())) for m in self._entropies]).sum(0)
        self._entropies = []
        total, weight = self.sum_over_ranks(sums).tolist()
        self.entropy_control.update(total / max(weight, 1.0))

    # -- checkpoint ------------------------------------------------------------------------------

    def rollout_state(self) -> dict[str, Any]:
        """Also the entropy's coefficient."""
        state = super().rollout_state()
        if self.entropy_control is not None:
            state["entropy"] = self.entropy_control.state_dict()
        return state

    def load_rollout_state(self, state: dict[str, Any]) -> None:
        """Take up what :meth:`rollout_state` gave."""
        super().load_rollout_state(state)
        if self.entropy_control is not None and "entropy" in state:
            self.entropy_control.load_state_dict(state["entropy"])

    def process_state(self) -> list[Any]:
        """The groups that are kept for replay."""
        return [] if self.replay is None else self.replay.state()

    def load_process_states(self, states: Sequence[list[Any]], rank: int, world_size: int) -> None:
        """Take up the groups that were kept."""
        if self.replay is not None:
            self.replay.load(dealt(states, rank, world_size))


def _is_constant(loss: str | Callable[..., Tensor], normaliser: str | None) -> bool:
    return (normaliser or loss_of(loss).normaliser) == "constant"
