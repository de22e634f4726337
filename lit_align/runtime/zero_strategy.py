"""DeepSpeed's ZeRO 2 and 3, with exact gradients and checkpoints that any strategy goes on from."""

from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.fabric.utilities.seed import reset_seed
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, StrategyRegistry
from torch import Tensor, nn
from torch.optim import Optimizer

from lit_align.runtime.zero_state import ZeroState, gathered, is_partitioned


class ZeroStrategy(DeepSpeedStrategy):
    """Lightning's ``DeepSpeedStrategy`` where the window of a step, not DeepSpeed, says what is averaged.

    DeepSpeed sums gradients as they come, in any number of backward passes, and this strategy tells it what
    to divide them by when they are used (the place of a loss scale), so that clipping too sees the gradient
    of the average. Each process builds the whole model on the host before it is spread. A checkpoint is that
    of one process: weights and optimiser states are put together in process zero, one at a time, so that
    every strategy goes on from it. On the command line: ``--trainer.strategy zero2`` or ``zero3``.

    Args:
        stage: 2 spreads gradients and optimiser states, 3 the weights as well.
        reduce_bucket_size: numbers in a bucket of gradients that are summed together.
        allgather_bucket_size: numbers in a bucket of weights that are gathered together (stage 2).
        overlap_comm: sum gradients while the backward pass goes on.
        persistence_threshold: weights of at most so many numbers stay whole on each process (stage 3).
        process_group_backend: ``nccl``, ``gloo``; by default the device's.
        timeout: of collectives, in seconds.

    Raises:
        ModuleNotFoundError: deepspeed is not installed.
        ValueError: another stage.
    """

    def __init__(
        self,
        stage: Literal[2, 3] = 2,
        reduce_bucket_size: int = 200_000_000,
        allgather_bucket_size: int = 200_000_000,
        overlap_comm: bool = True,
        persistence_threshold: int = 100_000,
        process_group_backend: str | None = None,
        timeout: float = 1800,
    ) -> None:
        if stage not in (2, 3):
            raise ValueError(f"stage is {stage}; ZeroStrategy knows ZeRO 2 and 3")
        _check_installed()
        super().__init__(
            stage=stage,
            reduce_bucket_size=reduce_bucket_size,
            allgather_bucket_size=allgather_bucket_size,
            overlap_comm=overlap_comm,
            process_group_backend=process_group_backend,
            timeout=timedelta(seconds=timeout),
        )
        assert isinstance(self.config, dict)
        self.config["zero_optimization"]["stage3_param_persistence_threshold"] = persistence_threshold
        self._state: ZeroState | None = None

    # -- gradients -------------------------------------------------------------------------------

    @property
    def handles_gradient_accumulation(self) -> bool:
        """No: the trainer says when a window is over, which its last one may be early."""
        return False

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Nothing to block: gradients are summed over processes in each backward pass."""
        yield

    def scale_gradients(self, scale: Tensor) -> None:
        """Let the next step, its clipping included, see the gradients times ``scale``."""
        zero: Any = self.deepspeed_engine.optimizer
        factor = float(scale)
        # Without weight there is no gradient either, and nothing to divide.
        if factor > 0:
            zero.override_loss_scale(float(zero.loss_scale) / factor)

    def forget_gradients(self) -> None:
        """Let go of what backward passes have left, which DeepSpeed does in a step alone."""
        zero: Any = self.deepspeed_engine.optimizer
        if self.zero_stage_3:
            # Weights that a window does not use would step along the gradients of the one before.
            zero.grad_partitions_flat_buffer.zero_()
            return
        for kept in (zero.all_grad_tensors, zero.averaged_gradients):
            kept.update(dict.fromkeys(kept))

    def backward(self, closure_loss: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """A backward pass of its own, also where several follow one call of the module."""
        zero: Any = self.deepspeed_engine.optimizer
        zero.clear_backward_seen_flag()
        return super().backward(closure_loss, *args, **kwargs)

    def optimizer_step(
        self, optimizer: Optimizer, closure: Callable[[], Any], model: Any = None, **kwargs: Any
    ) -> Any:
        """Step, and forget the scale and the gradients of this window."""
        try:
            return super().optimizer_step(optimizer, closure, model, **kwargs)
        finally:
            zero: Any = self.deepspeed_engine.optimizer
            zero.custom_loss_scaler = False
            self.forget_gradients()

    @property
    def left_step_out(self) -> bool:
        """Whether gradients that were not finite changed nothing."""
        engine: Any = self.deepspeed_engine
        return not engine.was_step_applied()

    # -- setting up ------------------------------------------------------------------------------

    def setup_environment(self) -> None:
        """As other strategies do, on CPUs too."""
        DDPStrategy.setup_environment(self)

    def setup_distributed(self) -> None:
        """Find the other processes."""
        reset_seed()
        self.set_world_ranks()
        self._init_deepspeed_distributed()

    @contextmanager
    def model_sharded_context(self) -> Iterator[None]:
        """Models are built whole, and spread when training is set up."""
        self._init_config_if_needed()
        yield

    def init_deepspeed(self) -> None:
        """Make DeepSpeed's engine; it clips by itself, which no hook of a module has to know.

        Raises:
            ValueError: the trainer clips by value, or computes in float16.
        """
        module = self.lightning_module
        assert module is not None
        assert self.model is not None
        if module.trainer.gradient_clip_algorithm == "value":
            raise ValueError("DeepSpeed clips by the norm: leave gradient_clip_algorithm out")
        if str(self.precision_plugin.precision).startswith("16"):
            raise ValueError(
                "sums of losses are too large for float16, and ZeRO divides them after the backward pass: "
                "use --trainer.precision bf16-mixed"
            )
        if module.trainer.training:
            self._initialize_deepspeed_train(self.model)
        else:
            self._initialize_deepspeed_inference(self.model)

    def _format_batch_size_and_grad_accum_config(self) -> None:
        assert isinstance(self.config, dict)
        assert self.lightning_module is not None
        self.config |= {
            "gradient_accumulation_steps": 1,
            # A step is when the trainer says so, after any number of backward passes.
            "managed_gradient_accumulation": False,
            "train_micro_batch_size_per_gpu": 1,
            "gradient_clipping": self.lightning_module.trainer.gradient_clip_val or 0.0,
            "zero_force_ds_cpu_optimizer": False,
        }

    def _setup_model_and_optimizer(
        self, model: nn.Module, optimizer: Optimizer | None, lr_scheduler: Any = None
    ) -> Any:
        assert optimizer is not None
        groups = [list(group["params"]) for group in optimizer.param_groups]
        trained = [p for p in model.parameters() if p.requires_grad]
        engine, zero = self._engine(
            model, self.config, model_parameters=trained, optimizer=optimizer, lr_scheduler=lr_scheduler
        )
        self._state = ZeroState(zero, groups)
        return engine, zero

    def _initialize_deepspeed_inference(self, model: nn.Module) -> None:
        assert isinstance(self.config, dict)
        parts = ("zero_optimization", "zero_allow_untested_optimizer") if self.zero_stage_3 else ()
        kept = {key: self.config[key] for key in ("bf16", *parts) if key in self.config}
        self._state = None
        self.model, _ = self._engine(model, {"train_micro_batch_size_per_gpu": 1} | kept, model_parameters=[])

    def _engine(self, model: nn.Module, config: Any, **given: Any) -> tuple[Any, Any]:
        import deepspeed

        module: Any
        for module in model.modules():
            for weight in module.outside_weights() if hasattr(module, "outside_weights") else ():
                # Else it is there only while the layer that holds it runs.
                deepspeed.zero.register_external_parameter(module, weight)
        arguments = Namespace(device_rank=self.local_rank)
        engine, zero, _, _ = deepspeed.initialize(
            args=arguments, config=config, model=model, dist_init_required=False, **given
        )
        return engine, zero

    # -- checkpoints -----------------------------------------------------------------------------

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The weights that belong in a checkpoint, whole on process zero. Collective."""
        module: Any = self.lightning_module
        state: dict[str, Any] = module.state_dict(keep_vars=True)
        wanted = module.saved_names() if hasattr(module, "saved_names") else state.keys()
        found: dict[str, Any] = {}
        for name in state:
            if name in wanted:
                found[name] = self._whole(state[name]) if isinstance(state[name], Tensor) else state[name]
        return found

    def _whole(self, value: Tensor) -> Tensor:
        if self._state is not None and self._state.optimises(value):
            whole = self._state.whole_weight(value)
            return whole.cpu() if self.is_global_zero else whole.new_empty(0)
        with gathered(value):
            return value.detach().to("cpu", copy=True) if self.is_global_zero else value.new_empty(0)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The states of the optimiser as if it were alone, whole on process zero. Collective."""
        assert self._state is not None
        return self._state.state_dict(keep=self.is_global_zero)

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write what process zero has, through the trainer's checkpoint plugin."""
        DDPStrategy.save_checkpoint(self, checkpoint, filepath, storage_options)

    def load_checkpoint(
        self, checkpoint_path: str | Path, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read it on every process, through the trainer's checkpoint plugin."""
        return DDPStrategy.load_checkpoint(self, checkpoint_path, weights_only)

    @torch.no_grad()
    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Put weights in their places, in the model and in the optimiser."""
        module = self.lightning_module
        assert module is not None
        places = module.state_dict(keep_vars=True)
        given = checkpoint["state_dict"]
        if not any(is_partitioned(place) for place in places.values() if isinstance(place, Tensor)):
            module.load_state_dict(given, strict=strict)
        elif strict and given.keys() != places.keys():
            raise ValueError(f"missing or foreign weights: {sorted(given.keys() ^ places.keys())[:5]}")
        for name, value in given.items():
            place = places.get(name)
            if not isinstance(place, Tensor):
                continue
            if is_partitioned(place):
                with gathered(place, writing=True):
                    place.copy_(value)
            elif place.shape == value.shape:
                place.copy_(value)
            if self._state is not None and self._state.optimises(place):
                self._state.set_weight(place, value)

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Yes: its states are in the checkpoint."""
        return True

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take up each weight's state where this process optimises it."""
        assert self._state is not None
        self._state.load_state_dict(checkpoint["optimizer_states"][0])


def _check_installed() -> None:
    import importlib.util

    if importlib.util.find_spec("deepspeed") is None:
        raise ModuleNotFoundError("ZeRO is DeepSpeed's: pip install 'lit-align[deepspeed]'")


for _name, _stage in (("zero2", 2), ("zero3", 3)):
    if _name not in StrategyRegistry:
        StrategyRegistry.register(_name, ZeroStrategy, f"DeepSpeed ZeRO {_stage}, exact", stage=_stage)
