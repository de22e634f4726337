"""What every algorithm shares: building the policy, an exact average of the loss, and metrics."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import lightning as L
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lit_align.algorithms.clipping import clip_in_step, forget_scale
from lit_align.algorithms.metrics import average
from lit_align.algorithms.micro_batches import WithGradientOf, run_parts
from lit_align.algorithms.optim import OptimConfig, build_optimizer, build_schedule
from lit_align.algorithms.precision import keep_forests
from lit_align.algorithms.row_adamw import check_trainer
from lit_align.algorithms.weights import build_weights
from lit_align.algorithms.window import average_gradients, average_of
from lit_align.batches import Forest
from lit_align.models.config import ModelConfig, PolicyLike
from lit_align.outputs import LossOutput, Metric, merge_outputs
from lit_align.runtime.gradients import check_strategy, forget_gradients
from lit_align.runtime.trainable import check_base, check_saved, keep_saved, saved_names

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    TokenizerLike: TypeAlias = "str | PreTrainedTokenizerBase | None"
else:
    # What the command line's parser sees; Python may give the object itself.
    TokenizerLike = str | None

LossAverage = Literal["window", "micro_batch"]


class AlignModule(L.LightningModule, ABC):
    """A policy, a loss of its scores, and the bookkeeping between them.

    An algorithm says how its model is built (:meth:`build`) and what its loss is (:meth:`loss`, a sum
    and its weight). This class divides by the weight of the whole accumulation window over all
    processes, so that no cut of the batch changes the gradient.

    Args:
        policy: Hub name, directory, description, or a module in memory.
        tokenizer: name, directory or object; by default the policy's own.
        lr: learning rate at the end of the warm-up.
        optim: optimiser and schedule.
        loss_average: ``window`` divides by the weight of the whole accumulation window over all
            processes; ``micro_batch`` averages the averages of micro-batches, as some trainers do,
            for those who need their numbers.
    """

    #: The scorer, once :meth:`configure_model` has built it; ``None`` before.
    policy: Any

    def __init__(
        self,
        policy: PolicyLike,
        tokenizer: TokenizerLike = None,
        lr: float = 1e-5,
        optim: OptimConfig | None = None,
        loss_average: LossAverage = "window",
    ) -> None:
        super().__init__()
        if policy is None:
            raise ValueError(
                "no policy: give a Hub name, a directory, a ModelConfig, or a module in memory "
                "(a checkpoint cannot carry the last, so give it again when loading one)"
            )
        in_memory = isinstance(policy, nn.Module)
        self.model_config = None if in_memory else ModelConfig.coerce(policy)
        # In a tuple, so that a module in memory is registered once, as part of the policy.
        self._given = (policy if in_memory else self.model_config,)
        self._tokenizer: Any = tokenizer
        self.lr = lr
        self.optim = OptimConfig(**optim) if isinstance(optim, dict) else optim or OptimConfig()
        self.loss_average = loss_average
        if loss_average == "micro_batch" and self.optim.micro_batch_tokens is not None:
            raise ValueError(
                "micro_batch_tokens cuts a batch into parts of one sum, and loss_average: micro_batch asks "
                "for averages of batches: leave one of the two out"
            )
        self.policy = None
        # The checkpoint holds trainable weights only; on_load_checkpoint checks that they are all there.
        self.strict_loading = False
        self.tokens_seen: Tensor
        self.register_buffer("tokens_seen", torch.zeros((), dtype=torch.long))
        #: Digest of the weights that a checkpoint leaves out.
        self.base_digest: str | None = None
        self._reports: list[dict[str, Metric]] = []
        self._window: list[Tensor] = []
        #: Whether the gradients of the window before are forgotten already.
        self.zeroed = False
        #: What the scaler of float16 multiplies losses by until the next optimiser step; ``None``: not read.
        self.loss_scale: float | None = None

    # -- what an algorithm says ------------------------------------------------------------------

    @abstractmethod
    def build(self, model: Any) -> nn.Module:
        """The scorer around the model of the description ``model``, weights included."""

    @abstractmethod
    def loss(self, scores: Any, batch: Forest) -> LossOutput:
        """The loss of a forest, or of a part of one, as a sum over its prompts."""

    def prepare(self, batch: Forest) -> Forest:
        """Add to the batch what the loss needs beside the policy's scores."""
        return batch

    def score_options(self, logging: bool) -> dict[str, Any]:
        """Keyword arguments of the scorer; ``logging`` says whether statistics will be reported."""
        return {}

    def observe(self, output: LossOutput) -> None:
        """Keep what the next optimiser step is to know of a part of its minibatch; called once for each."""

    # -- model -----------------------------------------------------------------------------------

    @property
    def has_tokenizer(self) -> bool:
        """Whether there is one: a policy in memory or from an architecture comes without."""
        return self._tokenizer is not None or bool(self.model_config and self.model_config.path)

    @property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The policy's tokenizer, loaded on first use; data modules take it from here."""
        from lit_align.models.tokenizers import load_tokenizer

        if self._tokenizer is None and self.model_config is None:
            raise ValueError("a policy in memory has no tokenizer: give tokenizer= to the algorithm")
        if self._tokenizer is None or isinstance(self._tokenizer, str):
            self._tokenizer = load_tokenizer(self._tokenizer or self.model_config)
        return self._tokenizer

    def configure_model(self) -> None:
        """Build the weights, where the strategy wants them; called again it does nothing."""
        if self.policy is not None:
            return
        build_weights(self, self._given[0])

    def attach(self) -> None:
        """Make what stands beside the policy and is made from it (a reference); called once."""

    def score(self, batch: Forest, **options: Any) -> Any:
        """What the policy says about a batch, without a loss."""
        if self.policy is None:
            self.configure_model()
        return self.policy(batch, **options)

    def setup(self, stage: str) -> None:
        """Keep batches out of the trainer's conversions, and forget a window that an exception cut off."""
        keep_forests(self.trainer.precision_plugin)
        if stage == "fit":
            check_strategy(self.trainer.strategy)
            self._window.clear()
            self._reports = []
            self.zeroed = False
            self.loss_scale = None

    # -- steps -----------------------------------------------------------------------------------

    def training_step(self, batch: Forest, batch_idx: int) -> Tensor:
        """The average loss of the micro-batch; its gradient is made exact in :meth:`optimizer_step`."""
        logging = self._logs_this_step()
        outputs = run_parts(self, batch, batch_idx, logging)
        last = outputs[-1].total
        output = merge_outputs(outputs)
        weight = output.weight if self.loss_average == "window" else torch.ones_like(output.weight)
        tokens = torch.tensor(float(batch.num_tokens), dtype=torch.float32, device=weight.device)
        self._window.append(torch.stack((weight.float(), tokens)))
        if self._trainer_logs_every():
            self._reports.append(output.metrics)
        average = average_of(output)
        # The gradient is that of the sum, so that uneven micro-batches count by their weight.
        return average if self.loss_average == "micro_batch" else WithGradientOf.apply(last, average)

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Any,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Divide the accumulated gradient by the weight of the window, then step.

        Inside the closure, so that clipping and every callback see the gradient of the average.
        """

        def closure() -> Any:
            loss = optimizer_closure() if optimizer_closure is not None else None
            self._average_gradients(optimizer)
            return loss

        super().optimizer_step(epoch, batch_idx, optimizer, closure)
        forget_scale(optimizer)
        self.loss_scale = None
        self.after_optimizer_step()
        if self._logs_this_step():
            self._log_training()

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        """Forget the gradients of the window before, where the parts of a batch have not done so."""
        if not self.zeroed:
            forget_gradients(self.trainer.strategy, optimizer)
        self.zeroed = False

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as the trainer is told, inside the optimiser's own pass over the gradients where it can."""
        if not clip_in_step(optimizer, gradient_clip_val, gradient_clip_algorithm, self.trainer.precision):
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def after_optimizer_step(self) -> None:
        """Called after the weights have changed, while ``global_step`` still counts the steps before."""

    def validation_step(self, batch: Forest, batch_idx: int) -> dict[str, Any] | None:
        """Collect metrics of a validation batch."""
        self._reports.append(self._run(batch, logging=True).metrics)
        return None

    def on_validation_epoch_start(self) -> None:
        """Set the training reports aside: validation may run between two logging steps."""
        self._training_reports, self._reports = self._reports, []

    def on_validation_epoch_end(self) -> None:
        """Report the averages over all validation rows of all processes."""
        self._log_evaluation("val")
        self._reports = self._training_reports

    def test_step(self, batch: Forest, batch_idx: int) -> None:
        """Collect metrics of a test batch."""
        self._reports.append(self._run(batch, logging=True).metrics)

    def on_test_epoch_start(self) -> None:
        """Forget what an earlier stage reported."""
        self._reports = []

    def on_test_epoch_end(self) -> None:
        """Report the averages over all test rows of all processes."""
        self._log_evaluation("test")

    # -- optimiser and checkpoint ------------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        """Optimiser over the trainable weights, and the schedule, stepped per optimiser step."""
        if self.optim.sparse_embedding:
            check_trainer(self.trainer)
        optimizer = build_optimizer(self, self.optim, self.lr)
        steps = self.trainer.estimated_stepping_batches
        # Lightning says -1 for epochs of streamed data, whose end nobody knows.
        schedule = build_schedule(optimizer, self.optim, steps if steps >= 0 else math.inf)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def saved_names(self) -> frozenset[str]:
        """Names in the state dict that belong in a checkpoint."""
        return saved_names(self)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave the frozen weights out."""
        keep_saved(checkpoint, self.saved_names())
        checkpoint["saved_names"] = sorted(self.saved_names())
        checkpoint["base"] = {"path": self._base_path(), "digest": self.base_digest}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint that does not belong to this model."""
        self.configure_model()
        # A sharding strategy loads the weights itself, and takes them out of the checkpoint.
        found = checkpoint.get("state_dict") or dict.fromkeys(checkpoint.get("saved_names", ()))
        check_saved(found, self.saved_names())
        check_base(checkpoint.get("base"), self._base_path(), self.base_digest)

    def _base_path(self) -> str | None:
        return self.model_config.path or None if self.model_config is not None else None

    # -- the rest --------------------------------------------------------------------------------

    def _run(self, batch: Forest, logging: bool) -> LossOutput:
        output = self.score(self.prepare(batch), loss=self.loss, **self.score_options(logging))
        metrics = {"loss": Metric(output.total.detach(), output.weight), **output.metrics}
        return output._replace(metrics=metrics)

    def _logs_this_step(self) -> bool:
        every = self._trainer_logs_every()
        return every > 0 and (self.trainer.global_step + 1) % every == 0

    def _trainer_logs_every(self) -> int:
        trainer: Any = self.trainer
        return 1 if trainer.fast_dev_run else trainer.log_every_n_steps

    def _average_gradients(self, optimizer: Optimizer) -> None:
        average_gradients(self, self._window, optimizer)
        self._window.clear()

    def _log_training(self) -> None:
        for name, value in average(self._reports, self.device).items():
            self.log(f"train/{name}", value, prog_bar=name == "loss")
        self._reports = []
        self.log("train/num_tokens", self.tokens_seen.float())

    def _log_evaluation(self, stage: str) -> None:
        found = average(self._reports, self.device)
        self._reports = []
        # Equal on all processes already; sync_dist only tells Lightning so.
        self.log_dict({f"{stage}/{name}": value for name, value in found.items()}, sync_dist=True)
