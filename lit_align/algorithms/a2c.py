"""Advantage actor-critic."""

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


class A2C(ActorCriticModule):
    """Advantage actor-critic: A3C (Mnih et al. 2016, arXiv 1602.01783) with one synchronous actor.

    The plain policy gradient with a learned baseline: each rollout is gone through once, nothing is clipped.
    Rewards are those of PPO: minus the KL to the reference at each token, and the score at the end.

    Args:
        policy: Hub name, directory, description, or a module in memory.
        tokenizer: name, directory or object; by default the policy's own.
        reference: what the policy is held to; by default the policy as it was built.
        rewards: a function, a model, an adapter, or several with weights; see
            :class:`lit_align.rollouts.reward_set.RewardSet`.
        critic: ``shared`` puts a value head on the policy's own trunk; ``adapter`` gives the critic an
            adapter of its own on the base under a policy with LoRA; a name, directory or description gives it
            a trunk of its own, initialised from there.
        value_head: how the value head starts, where none comes with the model.
        sampling: how completions are sampled.
        generator: what samples them; by default this package's own.
        completions: completions per prompt.
        kl: the penalty for leaving the reference.
        scores: scaling, clipping and penalties of scores; whitening of rewards.
        gamma: discount per token.
        gae_lambda: 1 is the paper's return less the value; below it, GAE.
        value_coefficient: weight of the value loss.
        entropy_coefficient: weight of the entropy bonus.
        whiten_advantages: bring advantages to mean 0 and variance 1 over the rollout; not in the paper.
        bootstrap_truncated: let the critic say what a completion is worth after its limit cut it off; by
            default it is worth nothing then. See :class:`ActorCriticModule`.
        correction: weights against the difference between sampler and trainer.
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
        kl: KLPenalty | None = None,
        scores: ScoreShaping | None = None,
        gamma: float = 1.0,
        gae_lambda: float = 1.0,
        value_coefficient: float = 0.5,
        entropy_coefficient: float = 0.0,
        whiten_advantages: bool = False,
        bootstrap_truncated: bool = False,
        correction: SamplerCorrection | None = None,
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
            # The gradient is that of the policy that sampled: a second pass would no longer be it.
            num_epochs=1,
            num_minibatches=1,
            kl=kl,
            scores=scores,
            gamma=gamma,
            gae_lambda=gae_lambda,
            objective=PolicyObjective("a2c"),
            value_clip_range=None,
            value_coefficient=value_coefficient,
            entropy_coefficient=entropy_coefficient,
            whiten_advantages=whiten_advantages,
            bootstrap_truncated=bootstrap_truncated,
            # Every ratio is 1.
            ratio_threshold=None,
            correction=correction,
            target_kl=None,
            lr=lr,
            optim=optim,
            loss_average=loss_average,
        )
        self.save_hyperparameters(arguments)
