"""Proximal policy optimisation with a value head."""

from lit_align.algorithms.actor_critic import ActorCriticModule, CriticLike
from lit_align.algorithms.base import LossAverage, TokenizerLike
from lit_align.algorithms.hparams import plain_arguments
from lit_align.algorithms.optim import OptimConfig
from lit_align.algorithms.shaping import KLPenalty, ScoreShaping
from lit_align.losses.policy import PolicyObjective
from lit_align.models.config import PolicyLike
from lit_align.models.value_head import ValueHeadConfig
from lit_align.rollouts.correction import SamplerCorrection
from lit_align.rollouts.generator import Generator
from lit_align.rollouts.reward_set import RewardsLike
from lit_align.rollouts.sampling import Sampling
from lit_align.scoring.references import Reference


class PPO(ActorCriticModule):
    """PPO (Schulman et al. 2017, arXiv 1707.06347) for language models (Ziegler et al., arXiv 1909.08593).

    Each token of a completion is an action, rewarded with minus its share of the KL to the reference, and at
    the end with the score. Advantages are GAE's; policy and value losses are clipped.

    Args:
        policy: Hub name, directory, description, or a module in memory.
        tokenizer: name, directory or object; by default the policy's own.
        reference: what the policy is held to; by default the policy as it was built.
        rewards: a function, a model, an adapter, or several with weights; see
            :class:`lit_align.rollouts.reward_set.RewardSet`.
        critic: ``shared`` puts a value head on the policy's own trunk; ``adapter`` gives the critic an
            adapter of its own on the base under a policy with LoRA; a name, directory or description gives it
            a trunk of its own, initialised from there (a reward model, the base).
        value_head: how the value head starts, where none comes with the model.
        sampling: how completions are sampled.
        generator: what samples them; by default this package's own.
        completions: completions per prompt.
        num_epochs: passes over each rollout.
        num_minibatches: optimiser steps per pass (with accumulation: micro-batches).
        kl: the penalty for leaving the reference: coefficient, estimator, and a target to steer to.
        scores: scaling, clipping and penalties of scores; whitening of rewards.
        gamma: discount per token.
        gae_lambda: λ of GAE.
        clip_range: ε of the policy's clipping.
        value_clip_range: ε of the value's clipping; ``None`` for none.
        value_coefficient: weight of the value loss.
        entropy_coefficient: weight of the entropy bonus.
        whiten_advantages: bring advantages to mean 0 and variance 1 over the rollout.
        bootstrap_truncated: let the critic say what a completion is worth after its limit cut it off; by
            default it is worth nothing then. See :class:`ActorCriticModule`.
        ratio_threshold: take away the gradient of a step whose tokens' mean ratio exceeds this.
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
        critic: CriticLike = "shared",
        value_head: ValueHeadConfig | None = None,
        sampling: Sampling | None = None,
        generator: Generator | None = None,
        completions: int = 1,
        num_epochs: int = 4,
        num_minibatches: int = 1,
        kl: KLPenalty | None = None,
        scores: ScoreShaping | None = None,
        gamma: float = 1.0,
        gae_lambda: float = 0.95,
        clip_range: float = 0.2,
        value_clip_range: float | None = 0.2,
        value_coefficient: float = 0.1,
        entropy_coefficient: float = 0.0,
        whiten_advantages: bool = True,
        bootstrap_truncated: bool = False,
        ratio_threshold: float | None = None,
        correction: SamplerCorrection | None = None,
        target_kl: float | None = None,
        lr: float = 1e-5,
        optim: OptimConfig | None = None,
        loss_average: LossAverage = "window",
    ) -> None:
        arguments = plain_arguments(locals())
        super().__init__(
            policy=policy,
            tokenizer=tokenizer,
            reference=reference,
            rewards=rewards,
            critic=critic,
            value_head=value_head,
            sampling=sampling,
            generator=generator,
            completions=completions,
            num_epochs=num_epochs,
            num_minibatches=num_minibatches,
            kl=kl,
            scores=scores,
            gamma=gamma,
            gae_lambda=gae_lambda,
            objective=PolicyObjective("ppo", clip_range=clip_range),
            value_clip_range=value_clip_range,
            value_coefficient=value_coefficient,
            entropy_coefficient=entropy_coefficient,
            whiten_advantages=whiten_advantages,
            bootstrap_truncated=bootstrap_truncated,
            ratio_threshold=ratio_threshold,
            correction=correction,
            target_kl=target_kl,
            lr=lr,
            optim=optim,
            loss_average=loss_average,
        )
        self.save_hyperparameters(arguments)
