"""REINFORCE++: token rewards, no critic, and the batch as the baseline."""

from typing import Any

import torch

from lit_align.algorithms.base import LossAverage, TokenizerLike
from lit_align.algorithms.hparams import plain_arguments
from lit_align.algorithms.on_policy import OnPolicy
from lit_align.algorithms.optim import OptimConfig
from lit_align.algorithms.policy_step import (
    group_experience,
    surrogate,
)
from lit_align.algorithms.rollout_metrics import judged
from lit_align.algorithms.shaping import ScoreShaper, ScoreShaping
from lit_align.batches import Forest
from lit_align.functional.advantages import advantage_estimator
from lit_align.functional.group_advantages import weighted_rewards
from lit_align.functional.kl import k1
from lit_align.functional.token_rewards import token_rewards
from lit_align.losses.policy import PolicyObjective
from lit_align.models.config import PolicyLike
from lit_align.outputs import LossOutput, Metric, Scores
from lit_align.rollouts.correction import SamplerCorrection
from lit_align.rollouts.generator import Generator
from lit_align.rollouts.reward_set import RewardResult, RewardsLike
from lit_align.rollouts.sampling import Sampling
from lit_align.scoring.references import Reference


class ReinforcePP(OnPolicy):
    """REINFORCE++ (Hu et al. 2025, arXiv 2501.03262): PPO's clipped loss with the batch instead of a critic.

    Each token's return is the score less the KL penalties from there to the end; whitened over all tokens of
    the rollout, it is the advantage.

    Args:
        policy: Hub name, directory, description, or a module in memory.
        tokenizer: name, directory or object; by default the policy's own.
        reference: what the policy is held to; by default the policy as it was built.
        rewards: a function, a model, an adapter, or several with weights; see
            :class:`lit_align.rollouts.reward_set.RewardSet`.
        sampling: how completions are sampled.
        generator: what samples them; by default this package's own.
        completions: completions per prompt.
        num_epochs: passes over each rollout.
        num_minibatches: optimiser steps per pass (with accumulation: micro-batches).
        beta: weight of the KL penalty (k1) in the reward of each token.
        baseline: ``group`` takes the mean of the prompt's completions away before the batch gives the scale
            (REINFORCE++-baseline); the KL penalty then is a part of the score.
        scores: scaling, clipping and penalties of scores.
        gamma: discount per token.
        clip_range: ε of the policy's clipping.
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
        completions: int = 1,
        num_epochs: int = 1,
        num_minibatches: int = 1,
        beta: float = 0.01,
        baseline: str = "batch",
        scores: ScoreShaping | None = None,
        gamma: float = 1.0,
        clip_range: float = 0.2,
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
        if baseline not in ("batch", "group"):
            raise ValueError(f"baseline is {baseline!r}; choose batch or group")
        if baseline == "group" and completions < 2:
            raise ValueError(
                "baseline: group compares the completions of a prompt: completions must be at least 2"
            )
        self.beta = beta
        self.baseline = baseline
        self.gamma = gamma
        shaping = ScoreShaping(**scores) if isinstance(scores, dict) else scores or ScoreShaping()
        self.shaper = ScoreShaper(shaping)
        self.objective = PolicyObjective("reinforce_pp", clip_range=clip_range)
        name = "reinforce_pp" if baseline == "batch" else "reinforce_pp_baseline"
        self.estimator = advantage_estimator(name)

    @property
    def uses_reference(self) -> bool:
        """Whether the KL to a reference is penalised."""
        return self.beta > 0

    def experience(self, rollout: Forest, rewarded: RewardResult) -> tuple[Forest, dict[str, Metric]]:
        """Returns of tokens (or of completions, with a group's baseline), whitened over the rollout."""
        columns, mask = rollout.token_columns, rollout.weights
        finished = rollout.completion_columns["finished"].bool()
        kl = torch.zeros_like(columns["old_logps"])
        if self.uses_reference:
            kl = k1(columns["old_logps"], columns["reference_logps"]) * (mask != 0)
        per_completion = rollout.sum_per_completion(kl)
        options, tokens = {}, None
        by_token = self.baseline == "batch"
        given = rewarded.scores if by_token else rewarded.table
        scores = self.shaper(weighted_rewards(given, rewarded.weights), finished, self.sum_over_ranks)
        if by_token:
            options = {"gamma": self.gamma}
            tokens = token_rewards(scores.nan_to_num(), kl, mask, rollout.sequence, kl_coefficient=self.beta)
            if rewarded.token_rewards is not None:
                tokens = tokens + torch.where(mask != 0, rewarded.token_rewards, 0)
        rewards = scores - self.beta * per_completion
        rollout = group_experience(
            rollout,
            rewarded,
            self.estimator,
            options,
            self.sum_over_ranks,
            rewards=rewards,
            token_rewards=tokens,
        )
        metrics = (
            {"objective/kl": Metric.mean(per_completion, judged(rollout))} if self.uses_reference else {}
        )
        return rollout, metrics

    def loss(self, scores: Scores, batch: Forest) -> LossOutput:
        """Sum over tokens of the clipped surrogate, and the number of tokens."""
        return surrogate(self.objective, scores, batch, fresh=self.buffer.updates == 0)

    def rollout_state(self) -> dict[str, Any]:
        """Also the moments of the scores."""
        return super().rollout_state() | {"scores": self.shaper.running.state_dict()}

    def load_rollout_state(self, state: dict[str, Any]) -> None:
        """Take up what :meth:`rollout_state` gave."""
        super().load_rollout_state(state)
        self.shaper.running.load_state_dict(state["scores"])
