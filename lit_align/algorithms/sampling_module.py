"""A policy that answers prompts: sampling, rewards, evaluation and predictions, before it learns from any."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from lit_align.algorithms import collection, rounds
from lit_align.algorithms.base import AlignModule, LossAverage, TokenizerLike
from lit_align.algorithms.optim import OptimConfig
from lit_align.algorithms.rounds import Responses
from lit_align.batches import Forest
from lit_align.models.config import PolicyLike
from lit_align.rollouts.correction import SamplerCorrection, correction_for
from lit_align.rollouts.generate import Prompt
from lit_align.rollouts.generator import Generator
from lit_align.rollouts.reward_set import RewardSet, RewardsLike
from lit_align.rollouts.sampling import Sampling
from lit_align.rollouts.sharded import check_sampling
from lit_align.runtime.data_place import data_place
from lit_align.scoring.policy import Policy
from lit_align.scoring.references import NoReference, Reference, default_reference


class SamplingModule(AlignModule):
    """A policy with what samples from it, what judges the samples, and what they are compared with.

    Args:
        policy: Hub name, directory, description, or a module in memory.
        tokenizer: name, directory or object; by default the policy's own.
        reference: what the policy is held to; by default the policy as it was built, where the algorithm
            compares with one at all.
        rewards: reward functions and models: see :class:`lit_align.rollouts.reward_set.RewardSet`.
        sampling: how completions are sampled.
        generator: what samples them; by default this package's own.
        completions: completions per prompt, ``G``.
        correction: weights for the difference between the sampler's probabilities and the trainer's; by
            default those that the generator asks for (one in this process: none); ``kind: none`` for none.
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
        correction: SamplerCorrection | None,
        lr: float,
        optim: OptimConfig | None,
        loss_average: LossAverage,
    ) -> None:
        super().__init__(policy, tokenizer, lr, optim, loss_average)
        if completions < 1:
            raise ValueError(f"completions is {completions}; it must be at least 1")
        self.reference: Any = reference
        self.rewards = RewardSet([]) if rewards is None else RewardSet.build(rewards)
        self.sampling = Sampling(**sampling) if isinstance(sampling, dict) else sampling or Sampling()
        self._generator = generator
        self.completions = completions
        self.correction = correction_for(generator, correction)
        #: Rollouts made so far: what their randomness is derived from.
        self.rollouts = 0
        #: How often the generator was given weights: each time is a version of its own.
        self.versions = 0
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", "0"))

    @property
    def uses_reference(self) -> bool:
        """Whether the reference's log-probs are wanted."""
        return True

    @property
    def temperature(self) -> float:
        """What logits are divided by wherever log-probs are compared with the sampler's."""
        return self.sampling.temperature or 1.0

    @property
    def generator(self) -> Generator:
        """What samples completions."""
        if self._generator is None:
            from lit_align.rollouts.native import NativeGenerator

            self._generator = NativeGenerator()
        return self._generator

    def score_options(self, logging: bool) -> dict[str, Any]:
        """The entropy on steps that log."""
        wanted = {"entropy"} if logging else set()
        return {"statistics": frozenset(wanted), "temperature": self.temperature}

    def build(self, model: Any) -> Policy:
        """A policy without dropout of its own, so that what it samples and what it scores are the same.

        An adapter's (``lora.dropout``) is the user's wish and stays in training steps (sampling and the old
        log-probs are without): with it, ratios hold its noise from the second update of a rollout on.
        """
        from lit_align.models.build import build_causal_lm
        from lit_align.models.dropout import remove_dropout

        policy = Policy(build_causal_lm(model))
        remove_dropout(policy.model)
        return policy

    def attach(self) -> None:
        """Make the reference from the policy as it is now, and load what judges it."""
        if self.reference is None:
            self.reference = default_reference(self.policy) if self.uses_reference else NoReference()
        self.reference.attach(self.policy, self.model_config)
        self.rewards.attach(self.policy, self.tokenizer if self.has_tokenizer else None)

    def setup(self, stage: str) -> None:
        """Ask for rewards, and for a strategy that can sample, before anything is loaded."""
        if not self.rewards.configs:
            raise ValueError(
                f"{type(self).__name__} has no rewards: give a function, a model, or a list of them "
                "(rewards: numeric_answer); only step() is given rewards and needs none"
            )
        super().setup(stage)
        check_sampling(self.trainer.strategy)

    # -- answers ---------------------------------------------------------------------------------

    def hand_over(self) -> None:
        """Give the generator the weights of now; one in another process would answer with older ones."""
        self.generator.sync(self.policy, self.versions)
        self.versions += 1

    @contextmanager
    def rollout_mode(self) -> Iterator[None]:
        """The precision of the trainer, in hooks where it is not in force by itself."""
        if self._trainer is None:
            yield
            return
        with self.trainer.precision_plugin.forward_context():
            yield

    def respond(self, prompts: Sequence[Prompt], *, seed: int = 0, completions: int = 1) -> Responses:
        """Answer prompts, without a trainer.

        Args:
            prompts: texts, or conversations (lists of ``{"role": ..., "content": ...}``).
            seed: of the sampling.
            completions: per prompt.
        """
        return rounds.respond(self, prompts, seed=seed, completions=completions)

    def on_validation_start(self) -> None:
        """Held-out prompts are answered by the weights that are validated."""
        self.hand_over()

    def on_test_start(self) -> None:
        """Test prompts are answered by the weights that are tested."""
        self.hand_over()

    def on_predict_start(self) -> None:
        """Predictions are those of the present weights."""
        self.hand_over()

    def validation_step(self, batch: Forest, batch_idx: int) -> dict[str, Any]:
        """Answer held-out prompts, and collect rewards and lengths; callbacks are given the answers."""
        answered, _, metrics = collection.evaluate(self, batch)
        self._reports.append(metrics)
        return {"answers": answered}

    def test_step(self, batch: Forest, batch_idx: int) -> None:
        """Answer test prompts, and collect rewards and lengths."""
        self._reports.append(collection.evaluate(self, batch)[2])

    def predict_step(self, batch: Forest, batch_idx: int) -> dict[str, Any]:
        """Completions of prompts with their rewards, one entry per completion."""
        forest, rewarded, _ = collection.evaluate(self, batch)
        texts = self.tokenizer.batch_decode([c for _, c, _ in forest.sequences()], skip_special_tokens=True)
        return {
            "row": [forest.rows[p] for p in forest.parents],
            "completion": texts,
            "finished": forest.completion_columns["finished"].tolist(),
            **{name: rewarded.table[:, i].tolist() for i, name in enumerate(rewarded.names)},
        }

    # -- the rest --------------------------------------------------------------------------------

    def saved_names(self) -> frozenset[str]:
        """The trainable weights, and those of a reference that moves."""
        return super().saved_names() | self.reference.saved_names()

    def sum_over_ranks(self, sums: Tensor) -> Tensor:
        """A tensor of sums, added over all processes."""
        if self._trainer is None or self.trainer.world_size == 1:
            return sums
        total: Tensor = self.trainer.strategy.reduce(sums, reduce_op="sum")
        # Rows that several processes read are counted once.
        return total / data_place(self.trainer).copies
