"""Which ways of sharding a model callbacks can look at it under."""

from typing import Any


def refuse_fsdp1(trainer: Any, owner: str) -> None:
    """Say so where a strategy gives no whole weights outside of a step.

    Raises:
        ValueError: under FSDP of the first generation, or DeepSpeed.
    """
    strategy = type(trainer.strategy).__name__
    if strategy in ("FSDPStrategy", "DeepSpeedStrategy"):
        raise ValueError(
            f"{owner} reads the model between steps, and {strategy} has no whole weights there; use "
            "ModelParallelStrategy (FSDP2) or DDP"
        )


def refuse_sharded(trainer: Any, owner: str) -> None:
    """Say so where no process has the whole weights.

    Raises:
        ValueError: under FSDP of either generation, or DeepSpeed.
    """
    strategy = type(trainer.strategy).__name__
    if strategy in ("FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy"):
        raise ValueError(
            f"{owner} needs the whole weights in one process, and under {strategy} none has them; do it "
            "after training, from a checkpoint"
        )
