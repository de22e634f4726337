"""What PPO and A2C share: token rewards with a KL penalty, a critic, and generalised advantages."""

import logging
from typing import Any, Literal

import torch
from torch import Tensor

from lit_align.algorithms.on_policy import OnPolicy
from lit_align.algorithms.policy_step import surrogate
from lit_align.algorithms.rollout_metrics import judged, objective_metrics
from lit_align.algorithms.shaping import KLPenalty, ScoreShaper, ScoreShaping
from lit_align.algorithms.value_step import value_loss
from lit_align.batches import Forest
from lit_align.functional.gae import gae
from lit_align.functional.group_advantages import weighted_rewards
from lit_align.functional.kl import KL_ESTIMATORS
from lit_align.functional.token_rewards import token_rewards
from lit_align.functional.whitening import moments, whiten, whiten_keep_mean
from lit_align.losses.policy import PolicyObjective
from lit_align.models.config import PolicyLike
from lit_align.models.critic import build_actor_critic, build_critic
from lit_align.models.dropout import remove_dropout
from lit_align.models.value_head import ValueHeadConfig
from lit_align.outputs import LossOutput, Metric, Scores
from lit_align.rollouts.reward_set import RewardResult
from lit_align.runtime.gradients import ScalesGradients
from lit_align.scoring.critic import ActorCritic, Critic
from lit_align.scoring.full_kl import full_kl
from lit_align.scoring.policy import Policy
from lit_align.scoring.value_adapter import ValueAdapter

logger = logging.getLogger(__name__)

CriticLike = PolicyLike | Literal["shared", "adapter"]


class ActorCriticModule(OnPolicy):
    """A policy and a critic that says what each of its tokens was worth.

    Args:
        critic: ``shared`` puts a value head on the policy's own trunk; ``adapter`` gives the critic an
            adapter of its own on the base under a policy with LoRA; a name, directory or description gives it
            a trunk of its own, initialised from there.
        value_head: how the value head starts, where none comes with the model.
        kl: the penalty for leaving the reference.
        scores: what is done to scores before they are rewards.
        gamma: discount per token.
        gae_lambda: 0 trusts the critic for all that follows a token, 1 trusts the one sample.
        objective: the policy loss, a mean over tokens.
        value_clip_range: how far a value may move from that of the rollout; ``None`` for as far as it likes.
        value_coefficient: weight of the value loss.
        entropy_coefficient: weight of the entropy, which is added to the objective.
        whiten_advantages: bring advantages to mean 0 and variance 1 over the rollouts of all processes.
        bootstrap_truncated: a completion that was cut off at its limit is worth, after its last token, what
            the critic thinks (Pardo et al. 2018, arXiv 1712.00378, 3: partial-episode bootstrapping) instead
            of nothing. For rewards that come as a completion goes on; where the text that was cut off is
            scored as a whole, that score already stands for what follows.
        ratio_threshold: where the mean ratio of an optimiser step's tokens exceeds it, the step's gradient is
            taken away; ``None`` for never.
        arguments: of :class:`OnPolicy`.
    """

    def __init__(
        self,
        *,
        critic: CriticLike,
        value_head: ValueHeadConfig | None,
        kl: KLPenalty | None,
        scores: ScoreShaping | None,
        gamma: float,
        gae_lambda: float,
        objective: PolicyObjective,
        value_clip_range: float | None,
        value_coefficient: float,
        entropy_coefficient: float,
        whiten_advantages: bool,
        bootstrap_truncated: bool,
        ratio_threshold: float | None,
        **arguments: Any,
    ) -> None:
        super().__init__(**arguments)
        if objective.loss.normaliser != "token_mean":
            raise ValueError(
                f"a critic's loss is a mean over tokens, and so must the policy's be, not "
                f"{objective.loss.normaliser!r}"
            )
        if ratio_threshold is not None and ratio_threshold <= 1:
            raise ValueError(
                f"ratio_threshold is {ratio_threshold}; ratios are 1 while the policy has not moved, so it "
                "must be above 1"
            )
        self.kl = KLPenalty(**kl) if isinstance(kl, dict) else kl or KLPenalty()
        self.shaper = ScoreShaper(
            ScoreShaping(**scores) if isinstance(scores, dict) else scores or ScoreShaping()
        )
        self.control = self.kl.control()
        # In a tuple for the reason that the policy's is; see AlignModule.
        shared = isinstance(critic, str) and critic == "shared"
        self._given_critic: Any = None if shared else (critic,)
        self.value_head_config = ValueHeadConfig(**value_head) if isinstance(value_head, dict) else value_head
        self.gamma, self.gae_lambda = gamma, gae_lambda
        self.objective = objective
        self.value_clip_range = value_clip_range
        self.value_coefficient = value_coefficient
        self.entropy_coefficient = entropy_coefficient
        self.whiten_advantages = whiten_advantages
        self.bootstrap_truncated = bootstrap_truncated
        self.ratio_threshold = ratio_threshold
        # Of the micro-batches of an optimiser step.
        self._ratios: list[Metric] = []
        #: The critic with a trunk or an adapter of its own; ``None`` where the policy carries the value head.
        self.critic: Critic | ValueAdapter | None = None

    @property
    def uses_reference(self) -> bool:
        """Whether the KL to a reference is penalised."""
        return self.kl.coefficient > 0

    def build(self, model: Any) -> Policy:
        """The policy, with a value head on it where the trunk is shared."""
        if self._given_critic is not None:
            return super().build(model)
        policy = ActorCritic(*build_actor_critic(model, self.value_head_config))
        remove_dropout(policy.model)
        return policy

    def attach(self) -> None:
        """Also build a critic of its own."""
        super().attach()
        if self._given_critic is None:
            return
        (given,) = self._given_critic
        if isinstance(given, str) and given == "adapter":
            self.critic = ValueAdapter(self.policy, value_head=self.value_head_config)
        else:
            self.critic = Critic(*build_critic(given, self.value_head_config))
            remove_dropout(self.critic.model)
        self.critic.train(self.training)

    def setup(self, stage: str) -> None:
        """Also refuse a threshold where gradients cannot be taken away."""
        if self.ratio_threshold is not None and isinstance(self.trainer.strategy, ScalesGradients):
            raise ValueError(
                f"ratio_threshold is {self.ratio_threshold:g}, but {type(self.trainer.strategy).__name__} "
                "keeps gradients to itself, where none is taken away: use ddp or fsdp2, or target_kl"
            )
        super().setup(stage)

    # -- experience ------------------------------------------------------------------------------

    def experience(self, rollout: Forest, rewarded: RewardResult) -> tuple[Forest, dict[str, Metric]]:
        """Rewards of tokens, values, advantages and returns as columns."""
        mask, sequence = rollout.weights, rollout.sequence
        finished = rollout.completion_columns["finished"].bool()
        raw = weighted_rewards(rewarded.scores, rewarded.weights)
        scores = self.shaper(raw, finished, self.sum_over_ranks).nan_to_num()
        kl = self._kl(rollout)
        rewards = token_rewards(scores, kl, mask, sequence, kl_coefficient=self.control.value)
        if rewarded.token_rewards is not None:
            rewards = rewards + torch.where(mask != 0, rewarded.token_rewards, 0)
        if self.shaper.shaping.whiten_rewards:
            rewards = whiten_keep_mean(rewards, mask, self.sum_over_ranks(moments(rewards, mask)))
        values = self._values(rollout)
        estimate = gae(
            rewards,
            values,
            mask,
            sequence,
            gamma=self.gamma,
            gae_lambda=self.gae_lambda,
            final_values=self._final_values(rollout, finished),
        )
        advantages = estimate.advantages
        if self.whiten_advantages:
            advantages = whiten(advantages, mask, self.sum_over_ranks(moments(advantages, mask)))
        metrics = objective_metrics(rollout, scores, kl, self.control.value)
        for name, column in (
            ("advantages", advantages),
            ("returns", estimate.returns),
            ("values", values),
        ):
            rollout = rollout.with_token_column(name, column)
        self._steer(rollout, kl)
        return rollout, metrics

    def _kl(self, rollout: Forest) -> Tensor:
        logps = rollout.token_columns["old_logps"]
        if not self.uses_reference:
            return torch.zeros_like(logps)
        if self.kl.estimator == "full":
            return full_kl(self.policy, self.reference, rollout, temperature=self.temperature)
        estimate = KL_ESTIMATORS[self.kl.estimator](logps, rollout.token_columns["reference_logps"])
        # The reference says 0 of a token without weight, which k3 may make infinite.
        return torch.where(rollout.weights != 0, estimate, 0)

    def _values(self, rollout: Forest) -> Tensor:
        if self.critic is not None:
            return self.critic(rollout)
        found = rollout.token_columns.get("values")
        # Completions that did not come from the generator have not met the value head yet.
        values: Tensor = self.policy(rollout, temperature=self.temperature).values if found is None else found
        return torch.where(rollout.weights != 0, values, 0)

    def _final_values(self, rollout: Forest, finished: Tensor) -> Tensor | None:
        """``[C]`` what completions are worth after their last token; ``None`` for nothing."""
        # Agreed among processes: sharded weights are gathered by all of them or by none.
        if not self.bootstrap_truncated or not self.sum_over_ranks((~finished).sum().float()):
            return None
        critic: Any = self.policy if self.critic is None else self.critic
        return torch.where(finished, 0, critic.final_values(rollout))

    def _steer(self, rollout: Forest, kl: Tensor) -> None:
        counted = (rollout.weights != 0).to(kl.dtype)
        count = judged(rollout).sum()
        total, samples = self.sum_over_ranks(torch.stack(((kl * counted).sum(), count))).tolist()
        if samples:
            self.control.update(total / samples, int(samples))

    # -- loss ------------------------------------------------------------------------------------

    def score_options(self, logging: bool) -> dict[str, Any]:
        """The entropy where it is in the loss, or reported."""
        wanted = {"entropy"} if logging or self.entropy_coefficient else set()
        return {"statistics": frozenset(wanted), "temperature": self.temperature}

    def loss(self, scores: Scores, batch: Forest) -> LossOutput:
        """Sum over tokens of policy loss, value loss and entropy bonus, and the number of tokens."""
        bonus = None
        if self.entropy_coefficient:
            assert scores.entropy is not None
            bonus = -self.entropy_coefficient * scores.entropy
        fresh = self.buffer.updates == 0
        output = surrogate(self.objective, scores, batch, fresh=fresh, extra=bonus)
        if "clip_ratio/region_mean" in output.metrics:
            output.metrics["policy/clipfrac_avg"] = output.metrics["clip_ratio/region_mean"]
        return output if scores.values is None else self._with(output, self.value_loss(scores.values, batch))

    def value_loss(self, values: Tensor, batch: Forest) -> LossOutput:
        """Sum over tokens of the critic's squared error, and the number of tokens."""
        return value_loss(values, batch, clip_range=self.value_clip_range)

    def _with(self, policy: LossOutput, value: LossOutput) -> LossOutput:
        return LossOutput(
            policy.total + self.value_coefficient * value.total, policy.weight, policy.metrics | value.metrics
        )

    def _run(self, batch: Forest, logging: bool) -> LossOutput:
        # First, because its activations are gone when the policy makes its own.
        value = None if self.critic is None else self.critic(batch, loss=self.value_loss)
        output = super()._run(batch, logging)
        if value is not None:
            output = self._with(output, value)
            output.metrics["loss"] = Metric(output.total.detach(), output.weight)
        return output

    def observe(self, output: LossOutput) -> None:
        """Keep also the ratios."""
        super().observe(output)
        if self.ratio_threshold is not None:
            self._ratios.append(output.metrics["val/ratio"])

    def forget_minibatch(self) -> None:
        """Also its ratios."""
        super().forget_minibatch()
        self._ratios = []

    def before_update(self, optimizer: Any) -> None:
        """Take the gradient away where the policy has run too far from the one that sampled."""
        ratios, self._ratios = self._ratios, []
        if self.ratio_threshold is None:
            return
        sums = torch.stack([torch.stack((m.value.float(), m.weight.float())) for m in ratios]).sum(0)
        total, weight = self.sum_over_ranks(sums).tolist()
        if not total > self.ratio_threshold * weight:
            return
        logger.warning(
            "the mean ratio of a step's tokens is %.3g, above ratio_threshold %g: it teaches nothing",
            total / weight,
            self.ratio_threshold,
        )
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.zero_()

    # -- checkpoint ------------------------------------------------------------------------------

    def rollout_state(self) -> dict[str, Any]:
        """Also the KL coefficient, and the moments of the scores."""
        own = {"kl": self.control.state_dict(), "scores": self.shaper.running.state_dict()}
        return super().rollout_state() | own

    def load_rollout_state(self, state: dict[str, Any]) -> None:
        """Take up what :meth:`rollout_state` gave."""
        super().load_rollout_state(state)
        self.control.load_state_dict(state["kl"])
        self.shaper.running.load_state_dict(state["scores"])
