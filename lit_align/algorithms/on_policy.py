"""What algorithms that sample while they train share: rollouts into a buffer, and a step per minibatch of it.

One minibatch is one ``training_step`` of automatic optimisation, so clipping, accumulation, precision,
``max_steps`` and every strategy work as they do everywhere. Where the buffer is empty before a batch, the
policy answers the prompts of that batch, is rewarded, and the buffer is full again.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch

from lit_align.algorithms import collection, rollout_state, rounds
from lit_align.algorithms.base import LossAverage, TokenizerLike
from lit_align.algorithms.optim import OptimConfig
from lit_align.algorithms.rounds import Completion
from lit_align.algorithms.sampling_module import SamplingModule
from lit_align.batches import Forest
from lit_align.models.config import PolicyLike
from lit_align.outputs import LossOutput, Metric
from lit_align.rollouts.buffer import RolloutBuffer, minibatch_plan
from lit_align.rollouts.correction import SamplerCorrection
from lit_align.rollouts.generate import Prompt
from lit_align.rollouts.generator import Generator
from lit_align.rollouts.reward_set import RewardResult, RewardsLike
from lit_align.rollouts.sampling import Sampling
from lit_align.runtime.seeds import derive
from lit_align.scoring.references import Reference


class OnPolicy(SamplingModule):
    """A policy that learns from its own completions.

    An algorithm says what a rollout is worth (:meth:`experience`) and what the loss of a minibatch is
    (:meth:`loss`). A batch holds prompts, and is handed over ``steps_per_rollout`` times in a row, once for
    each minibatch of the rollout that it starts; `lit_align.datamodules.PromptDataModule` does that.

    Args:
        policy: Hub name, directory, description, or a module in memory.
        tokenizer: name, directory or object; by default the policy's own.
        reference: what the policy is held to; by default the policy as it was built, where the algorithm
            compares with one at all.
        rewards: reward functions and models: see :class:`lit_align.rollouts.reward_set.RewardSet`. Only
            :meth:`step`, which is given rewards, does without.
        sampling: how completions are sampled.
        generator: what samples them; by default this package's own.
        completions: completions per prompt, ``G``.
        num_epochs: passes over each rollout.
        num_minibatches: optimiser steps per pass (with accumulation: micro-batches).
        correction: weights for the difference between the sampler's probabilities and the trainer's; by
            default those that the generator asks for (one in this process: none); ``kind: none`` for none.
        target_kl: pass over the rest of a rollout once the policy has moved by 1.5 times this, in nats per
            token from the policy that sampled.
        lr: learning rate at the end of the warm-up.
        optim: optimiser and schedule.
        loss_average: see :class:`AlignModule`.
    """

    def __init__(
        self,
        policy: PolicyLike,
        tokenizer: TokenizerLike,
        reference: Reference | None,
        rewards: RewardsLike,
        sampling: Sampling | None,
        generator: Generator | None,
        completions: int,
        num_epochs: int,
        num_minibatches: int,
        correction: SamplerCorrection | None,
        target_kl: float | None,
        lr: float,
        optim: OptimConfig | None,
        loss_average: LossAverage,
    ) -> None:
        super().__init__(
            policy, tokenizer, reference, rewards, sampling, generator, completions, correction,
            lr, optim, loss_average,
        )  # fmt: skip
        for name, value in (("num_epochs", num_epochs), ("num_minibatches", num_minibatches)):
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        self.num_epochs = num_epochs
        self.num_minibatches = num_minibatches
        self.target_kl = target_kl
        self.buffer = RolloutBuffer()
        #: Micro-batches of the window that is still open.
        self.open = 0
        #: What was before it: the rollouts made, and both states.
        self.before: tuple[int, dict[str, Any], list[Any]] = (0, {}, [])
        # How far the policy has moved in it.
        self._moved: list[Metric] = []
        self._own_optimizer: torch.optim.Optimizer | None = None
        #: Updates made by hand.
        self.own_steps = 0

    # -- what an algorithm says ------------------------------------------------------------------

    @abstractmethod
    def experience(self, rollout: Forest, rewarded: RewardResult) -> tuple[Forest, dict[str, Metric]]:
        """A rollout with what the loss needs of it as columns (``advantages``), and what to report.

        Args:
            rollout: with ``old_logps`` and, where :attr:`uses_reference`, ``reference_logps``.
            rewarded: its rewards.
        """

    @property
    def steps_per_rollout(self) -> int:
        """Training steps (minibatches) that one batch of prompts is good for; the data module asks."""
        return self.num_epochs * self.num_minibatches

    def setup(self, stage: str) -> None:
        """Also forget what another fit left half used."""
        super().setup(stage)
        if stage == "fit":
            # A checkpoint is read after this.
            self.buffer.clear()
            self.open = 0
            self.forget_minibatch()

    # -- rollouts --------------------------------------------------------------------------------

    @torch.no_grad()
    def rollout(self, prompts: Forest) -> tuple[Forest, dict[str, Metric]]:
        """Answer a batch of prompts and say what the answers are worth: what the buffer is filled with."""
        self.hand_over()
        forest = collection.generate(self, prompts, f"rollout {self.rollouts}")
        return collection.judge(self, forest, collection.reward(self, forest))

    def on_train_batch_start(self, batch: Forest, batch_idx: int) -> None:
        """Roll out where the buffer is empty."""
        if not self.buffer.empty:
            if batch.rows != self.buffer.source:
                raise RuntimeError(
                    f"the batch holds rows {list(batch.rows)[:4]} while the rollout of rows "
                    f"{list(self.buffer.source)[:4]} has {len(self.buffer.plan) - self.buffer.taken} steps "
                    f"left: each batch of prompts has to come {self.steps_per_rollout} times in a row "
                    "(steps_per_rollout), as PromptDataModule gives them"
                )
            return
        self._check_accumulation()
        if self.open == 0:
            self.before = (self.rollouts, self.rollout_state(), self.process_state())
        with self.rollout_mode():
            experience, metrics = self.rollout(batch)
        self.fill(experience, batch.rows)
        if self._trainer_logs_every():
            self._reports.append(metrics)

    def fill(self, experience: Forest, source: Sequence[int]) -> None:
        """Put a rollout into the buffer, cut into minibatches."""
        seed = derive(self.seed, "plan", self.rollouts)
        plan = minibatch_plan(
            experience.num_prompts, epochs=self.num_epochs, minibatches=self.num_minibatches, seed=seed
        )
        self.buffer.fill(experience, plan, source)
        self.rollouts += 1

    def _check_accumulation(self) -> None:
        every = self.trainer.accumulate_grad_batches
        steps = self.steps_per_rollout
        if steps % every and every % steps:
            raise ValueError(
                f"accumulate_grad_batches is {every}, but a rollout has {steps} minibatches (num_epochs "
                f"{self.num_epochs} x num_minibatches {self.num_minibatches}): one must divide the other, or "
                "a window would mix the end of a rollout with the start of another"
            )

    # -- steps -----------------------------------------------------------------------------------

    def training_step(self, batch: Forest, batch_idx: int) -> Any:
        """A step on the next minibatch of the buffer; ``batch`` is what the rollout was made of."""
        minibatch = self.buffer.take().to(self.device)
        self.open += 1
        if not self.buffer.stopped:
            return super().training_step(minibatch, batch_idx)
        if self.trainer.world_size == 1:
            return None
        # Lightning lets no process of several leave a step out: its gradient is made, and forgotten.
        reports = list(self._reports)
        loss = super().training_step(minibatch, batch_idx)
        self._reports = reports
        self.forget_minibatch()
        return loss

    def forget_minibatch(self) -> None:
        """Forget what was measured on a minibatch that changes no weights."""
        self._moved = []

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Any,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Step as every algorithm does, or pass over a minibatch of a rollout that is done with."""
        if self.buffer.stopped and optimizer_closure is not None:
            optimizer_closure()
            self._window.clear()
            if self._logs_this_step() and self._reports:
                self._log_training()
        else:
            super().optimizer_step(epoch, batch_idx, optimizer, self._then(optimizer_closure, optimizer))
        self.open = 0

    def _then(self, closure: Callable[[], Any] | None, optimizer: Any) -> Callable[[], Any] | None:
        if closure is None:
            return None

        def looked_at() -> Any:
            loss = closure()
            self.before_update(optimizer)
            return loss

        return looked_at

    def before_update(self, optimizer: Any) -> None:
        """What precedes each change of the weights, with its gradients made; with a trainer or without."""

    def after_optimizer_step(self) -> None:
        """Count the update, look at how far it went, and let a moving reference take its step."""
        self.after_update()
        self.reference.after_step(self.policy, self.trainer.global_step + 1)

    def after_update(self) -> None:
        """What follows each change of the weights, with a trainer or without."""
        self.buffer.updates += 1
        moved, self._moved = self._moved, []
        if self.target_kl is None or not moved:
            return
        sums = torch.stack([torch.stack((m.value.float(), m.weight.float())) for m in moved]).sum(0)
        drift, weight = self.sum_over_ranks(sums).tolist()
        self.buffer.stopped = drift > 1.5 * self.target_kl * weight

    def observe(self, output: LossOutput) -> None:
        """Keep how far the policy has moved."""
        super().observe(output)
        if self.target_kl is not None and "policy/approxkl_avg" in output.metrics:
            self._moved.append(output.metrics["policy/approxkl_avg"])

    # -- by hand ---------------------------------------------------------------------------------

    def step(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[Completion],
        rewards: Sequence[float | None],
        *,
        max_norm: float | None = 1.0,
    ) -> dict[str, float]:
        """One round of optimisation, without a trainer, on completions that you have judged.

        Args:
            prompts: one per completion; the completions of a group repeat theirs.
            completions: texts (an end token is added), or token ids as :meth:`respond` gives them.
            rewards: one per completion; ``None`` leaves it out.
            max_norm: what the norm of the gradient is clipped to.

        Returns:
            The metrics of the round.
        """
        return rounds.optimise(self, prompts, completions, rewards, max_norm=max_norm)

    def own_optimizer(self) -> torch.optim.Optimizer:
        """The optimiser of :meth:`step`, made at its first use."""
        if self._own_optimizer is None:
            self._own_optimizer = rounds.optimizer_of(self)
        return self._own_optimizer

    # -- checkpoint ------------------------------------------------------------------------------

    def rollout_state(self) -> dict[str, Any]:
        """State of the algorithm beside weights and buffer, as plain data.

        The same on every process, but for what reward functions remember of the completions they judged; as
        many processes as before get back their own.
        """
        return {"rewards": self.rewards.reward_state()}

    def load_rollout_state(self, state: dict[str, Any]) -> None:
        """Take up what :meth:`rollout_state` gave."""
        self.rewards.load_reward_state(state["rewards"])

    def process_state(self) -> list[Any]:
        """What this process alone holds beside its buffer (a replay buffer), as plain data and tensors."""
        return []

    def load_process_states(self, states: Sequence[list[Any]], rank: int, world_size: int) -> None:
        """Take up this process's part of what :meth:`process_state` gave on each process."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the rollout that is half used, and what its successors will depend on."""
        super().on_save_checkpoint(checkpoint)
        self.reference.flush()
        checkpoint["on_policy"] = rollout_state.saved(self)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the rollout that was half used."""
        super().on_load_checkpoint(checkpoint)
        rollout_state.take_up(self, checkpoint["on_policy"])
