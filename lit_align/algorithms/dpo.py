"""Direct preference optimisation and its family."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from lit_align.algorithms.base import AlignModule, LossAverage, TokenizerLike
from lit_align.algorithms.hparams import plain_arguments
from lit_align.algorithms.optim import OptimConfig
from lit_align.algorithms.pairs import check_pairs, pair_metrics, pair_of
from lit_align.batches import Forest
from lit_align.losses import wpo as wpo_weights
from lit_align.losses.objective import PreferenceObjective
from lit_align.models.config import PolicyLike
from lit_align.outputs import LossOutput, Scores, Statistic
from lit_align.scoring.policy import Policy
from lit_align.scoring.references import Reference, default_reference

Divergence = Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"]


class DPO(AlignModule):
    """Preference pairs without a reward model (Rafailov et al. 2023, arXiv 2305.18290).

    Args:
        policy: Hub name, directory, description, or a module in memory.
        tokenizer: name, directory or object; by default the policy's own.
        reference: what the policy is compared with; by default the policy as it was built: its base
            under adapters, a frozen copy otherwise.
        loss: a name of :data:`lit_align.losses.preference.PREFERENCE_LOSSES`, several with their weights
            (``{sigmoid: 0.8, sft: 1.0}``, as in MPO), or a function of your own.
        beta: strength of the pull towards the reference; also the scale of the rewards in the metrics.
        label_smoothing: share of pairs that are taken to be labelled the wrong way round; for the losses
            that know it (cdpo, robust, exo_pair, aot, aot_unpaired).
        discopop_tau: temperature of the ``discopop`` loss.
        f_divergence: divergence from the reference; others than reverse_kl go with the losses that see
            the reference through it alone.
        f_alpha: which alpha_divergence: 0 is the forward KL, 1 the reverse.
        ld_alpha: weight of a completion's tail past the length of its rival (LD-DPO); ``None`` is 1.
        wpo: weigh each pair by how likely the policy is to write it (WPO).
        lr: learning rate at the end of the warm-up.
        optim: optimiser and schedule.
        loss_average: see :class:`AlignModule`.
    """

    def __init__(
        self,
        policy: PolicyLike = None,
        tokenizer: TokenizerLike = None,
        reference: Reference | None = None,
        loss: str | dict[str, float] | Callable[..., Tensor] = "sigmoid",
        beta: float = 0.1,
        label_smoothing: float = 0.0,
        discopop_tau: float | None = None,
        f_divergence: Divergence = "reverse_kl",
        f_alpha: float | None = None,
        ld_alpha: float | None = None,
        wpo: bool = False,
        lr: float = 1e-6,
        optim: OptimConfig | None = None,
        loss_average: LossAverage = "window",
    ) -> None:
        arguments = plain_arguments(locals())
        super().__init__(policy, tokenizer, lr, optim, loss_average)
        self.save_hyperparameters(arguments)
        #: Attached to the policy by :meth:`configure_model`; until then as it was given.
        self.reference: Any = reference
        self.beta = beta
        self.ld_alpha = ld_alpha
        self.wpo = wpo
        self.objective = PreferenceObjective(
            loss,
            divergence=f_divergence,
            alpha=f_alpha,
            beta=beta,
            label_smoothing=label_smoothing,
            tau=discopop_tau,
        )

    def build(self, model: Any) -> Policy:
        """A policy without dropout, so that it and its reference agree at the first step."""
        from lit_align.models.build import build_causal_lm
        from lit_align.models.dropout import remove_dropout

        policy = Policy(build_causal_lm(model))
        remove_dropout(policy.model)
        return policy

    def attach(self) -> None:
        """Make the reference from the policy as it is now."""
        if self.reference is None:
            self.reference = default_reference(self.policy)
        self.reference.attach(self.policy, self.model_config)

    def prepare(self, batch: Forest) -> Forest:
        """Add the reference's log-probs."""
        check_pairs(batch, "DPO")
        if not self.objective.uses_reference:
            return batch
        return batch.with_token_column("reference_logps", self.reference.score(batch))

    def score_options(self, logging: bool) -> dict[str, Any]:
        """Statistics of TRL's metrics on steps that log; what WPO weighs with on all."""
        wanted: set[Statistic] = {"entropy", "mean_logit", "top1"} if logging else set()
        return {
            "statistics": frozenset(wanted | ({"log_sum_p2"} if self.wpo else set())),
            "couples_batch": self.objective.couples_batch,
        }

    def loss(self, scores: Scores, batch: Forest) -> LossOutput:
        """Sum over pairs, and their number."""
        pair = pair_of(scores, batch, self.ld_alpha)
        each = self.objective(pair)
        if self.wpo:
            assert scores.log_sum_p2 is not None
            weights = wpo_weights.completion_weights(
                scores.logps, scores.log_sum_p2, batch.weights, batch.sequence, batch.num_completions
            )
            each = each * wpo_weights.pair_weights(weights[0::2], weights[1::2])
        count = torch.tensor(float(len(each)), dtype=torch.float32, device=each.device)
        return LossOutput(each.sum(), count, pair_metrics(pair, scores, batch, beta=self.beta))

    def after_optimizer_step(self) -> None:
        """Let a reference that follows the policy take its step."""
        self.reference.after_step(self.policy, self.trainer.global_step + 1)

    def saved_names(self) -> frozenset[str]:
        """The trainable weights, and those of a reference that moves."""
        return super().saved_names() | self.reference.saved_names()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave the frozen weights out, and let a reference that remembers write down what it holds back.

        A row that is scored again in another batch differs in its last bits, so what a checkpoint's
        past has scored must outlive the process.
        """
        super().on_save_checkpoint(checkpoint)
        self.reference.flush()

    def on_train_epoch_end(self) -> None:
        """Let a reference that remembers write down what it holds back."""
        self.reference.flush()

    def predict_step(self, batch: Forest, batch_idx: int) -> dict[str, Any]:
        """Log-probs, rewards and margin per pair."""
        batch = self.prepare(batch)
        pair = pair_of(self.score(batch), batch, self.ld_alpha)
        chosen, rejected = self.beta * pair.chosen_logratios, self.beta * pair.rejected_logratios
        return {
            "row": list(batch.rows),
            "chosen_logps": pair.chosen_logps,
            "rejected_logps": pair.rejected_logps,
            "chosen_reward": chosen,
            "rejected_reward": rejected,
            "margin": chosen - rejected,
        }
