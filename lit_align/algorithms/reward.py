"""Reward model from pairwise preferences."""

from typing import Any

import torch
from torch import Tensor

from lit_align.algorithms.base import AlignModule, LossAverage, TokenizerLike
from lit_align.algorithms.hparams import plain_arguments
from lit_align.algorithms.optim import OptimConfig
from lit_align.batches import Forest
from lit_align.losses.reward import bradley_terry, centering
from lit_align.models.config import PolicyLike
from lit_align.outputs import LossOutput, Metric
from lit_align.scoring.policy import RewardScorer


class RewardModel(AlignModule):
    """Bradley-Terry: the chosen completion shall score higher than the rejected one.

    A ``margin`` column of the data is subtracted from the difference. The score head is trained and
    saved, with LoRA too, and the result loads with ``AutoModelForSequenceClassification``.

    Args:
        policy: Hub name, directory, description, or a classifier with one label in memory.
        tokenizer: name, directory or object; by default the policy's own.
        center_rewards_coefficient: weight of the squared sum of the two rewards, which keeps rewards
            around zero (arXiv 2312.09244); 0.01 is usual, 0 leaves it out.
        lr: learning rate at the end of the warm-up.
        optim: optimiser and schedule.
        loss_average: see :class:`AlignModule`.
    """

    def __init__(
        self,
        policy: PolicyLike = None,
        tokenizer: TokenizerLike = None,
        center_rewards_coefficient: float = 0.0,
        lr: float = 1e-4,
        optim: OptimConfig | None = None,
        loss_average: LossAverage = "window",
    ) -> None:
        arguments = plain_arguments(locals())
        super().__init__(policy, tokenizer, lr, optim, loss_average)
        self.save_hyperparameters(arguments)
        self.center_rewards_coefficient = center_rewards_coefficient

    def build(self, model: Any) -> RewardScorer:
        """A classifier with one output, read at the last token."""
        from lit_align.models.build import build_reward_model

        # Written into the exported model, whose own forward looks for it.
        pad = self.tokenizer.pad_token_id if self.has_tokenizer else None
        return RewardScorer(build_reward_model(model, pad_token_id=pad))

    def loss(self, scores: Tensor, batch: Forest) -> LossOutput:
        """Sum over pairs, and their number; ``scores`` are rewards ``[C]``, chosen and rejected by turns."""
        chosen, rejected = scores[0::2], scores[1::2]
        each = bradley_terry(chosen, rejected, margin=batch.prompt_columns.get("margin"))
        if self.center_rewards_coefficient:
            each = each + self.center_rewards_coefficient * centering(chosen, rejected)
        metrics = {
            "accuracy": Metric.mean((chosen > rejected).float()),
            "margin": Metric.mean(chosen - rejected),
            "min_reward": Metric.low(scores),
            "mean_reward": Metric.mean(scores),
            "max_reward": Metric.high(scores),
        }
        count = torch.tensor(float(len(each)), dtype=torch.float32, device=each.device)
        return LossOutput(each.sum(), count, metrics)

    def predict_step(self, batch: Forest, batch_idx: int) -> dict[str, Any]:
        """Rewards and margin per pair."""
        rewards = self.score(batch)
        chosen, rejected = rewards[0::2], rewards[1::2]
        return {"row": list(batch.rows), "chosen": chosen, "rejected": rejected, "margin": chosen - rejected}
