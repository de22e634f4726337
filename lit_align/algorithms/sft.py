"""Supervised fine-tuning."""

from typing import Any, Literal

from lit_align.algorithms.base import AlignModule, LossAverage, TokenizerLike
from lit_align.algorithms.hparams import plain_arguments
from lit_align.algorithms.optim import OptimConfig
from lit_align.batches import Forest
from lit_align.losses import sft as losses
from lit_align.models.config import PolicyLike
from lit_align.outputs import LossOutput, Metric, Scores, Statistic
from lit_align.scoring.policy import Policy

_LOSSES = {"nll": losses.nll, "dft": losses.dft}


class SFT(AlignModule):
    """Next-token prediction on completions.

    The loss of a window is the sum of token losses, each times its weight, over the sum of weights.

    Args:
        policy: Hub name, directory, description, or a module in memory.
        tokenizer: name, directory or object; by default the policy's own.
        loss: ``nll``, or ``dft``: each token's loss is scaled by its probability (arXiv 2508.05629).
        neftune_alpha: uniform noise on the embeddings while training (arXiv 2310.05914), 5 to 15.
        router_loss_weight: weight of the load-balancing loss of a mixture of experts; 0 leaves it out. It is
            not to be had with ``optim.micro_batch_tokens``.
        lr: learning rate at the end of the warm-up.
        optim: optimiser and schedule.
        loss_average: see :class:`AlignModule`.
    """

    def __init__(
        self,
        policy: PolicyLike = None,
        tokenizer: TokenizerLike = None,
        loss: Literal["nll", "dft"] = "nll",
        neftune_alpha: float | None = None,
        router_loss_weight: float = 0.0,
        lr: float = 2e-5,
        optim: OptimConfig | None = None,
        loss_average: LossAverage = "window",
    ) -> None:
        arguments = plain_arguments(locals())
        super().__init__(policy, tokenizer, lr, optim, loss_average)
        self.save_hyperparameters(arguments)
        if loss not in _LOSSES:
            raise ValueError(f"loss is {loss!r}; SFT has {', '.join(_LOSSES)}")
        if router_loss_weight and self.optim.micro_batch_tokens is not None:
            raise ValueError(
                "router_loss_weight weighs a product of averages over the whole batch, which the parts of "
                "optim.micro_batch_tokens do not add up to: leave one of the two out (a smaller batch_size "
                "with accumulate_grad_batches also saves memory)"
            )
        self.token_loss = _LOSSES[loss]
        self.neftune_alpha = neftune_alpha
        self.router_loss_weight = router_loss_weight

    def build(self, model: Any) -> Policy:
        """A policy with the noise of the configuration."""
        from lit_align.models.build import build_causal_lm

        return Policy(build_causal_lm(model), neftune_alpha=self.neftune_alpha)

    def score_options(self, logging: bool) -> dict[str, Any]:
        """Entropy and accuracy on steps that log; the router's loss on all, where it is used."""
        wanted: set[Statistic] = {"entropy", "top1"} if logging else set()
        return {"statistics": frozenset(wanted | ({"router_loss"} if self.router_loss_weight else set()))}

    def loss(self, scores: Scores, batch: Forest) -> LossOutput:
        """Weighted sum of token losses, and the sum of the weights."""
        total = (self.token_loss(scores.logps) * batch.weights).sum()
        weight = batch.weights.sum()
        metrics = {}
        if scores.entropy is not None and scores.top1 is not None:
            metrics["entropy"] = Metric.mean(scores.entropy, (batch.weights != 0).float())
            metrics["mean_token_accuracy"] = Metric.mean(scores.top1, (batch.weights != 0).float())
        if scores.router_loss is not None:
            # Weighed like the tokens that it was computed on, so that windows average it alike.
            total = total + self.router_loss_weight * scores.router_loss * weight
            metrics["aux_loss"] = Metric(scores.router_loss.detach() * weight, weight)
        return LossOutput(total, weight, metrics)

    def predict_step(self, batch: Forest, batch_idx: int) -> dict[str, Any]:
        """Summed log-prob and number of scored tokens per row."""
        scores = self.score(batch)
        return {
            "row": [batch.rows[p] for p in batch.parents],
            "logps": batch.sum_per_completion(scores.logps),
            "num_tokens": batch.sum_per_completion((batch.weights != 0).float()).long(),
        }
