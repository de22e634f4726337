"""FSDP2 and tensor parallelism with checkpoints that are whole or not there."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from lit_align.runtime.checkpoint_io import AtomicCheckpointIO, intact
from lit_align.runtime.digest import shared_sha256
from lit_align.runtime.manifest import read_manifest
from lit_align.runtime.sharded_checkpoint import (
    Processes,
    load_parted,
    save_sharded,
    tensor_names,
)


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's ``ModelParallelStrategy``, with checkpoints that survive like those of one process.

    A checkpoint is a directory that all processes write together: safetensors, an index, plain values, a
    manifest with digests last. It is complete or passed over; loading verifies it, with each process
    reading its share. Any number of processes of any strategy goes on from it, and ``lit-align export``
    makes a model of it. On the command line: ``--trainer.strategy fsdp2``.

    Args:
        data_parallel_size: processes that each take other rows and share the weights (FSDP2); by default
            all that tensor parallelism leaves.
        tensor_parallel_size: processes that share each layer's products, of the same rows.
        save_distributed_checkpoint: ``False`` gathers everything in process zero and writes one file.
        process_group_backend: ``nccl``, ``gloo``; by default the device's.
        timeout: of collectives, in seconds.
    """

    def __init__(
        self,
        data_parallel_size: int | Literal["auto"] = "auto",
        tensor_parallel_size: int = 1,
        save_distributed_checkpoint: bool = True,
        process_group_backend: str | None = None,
        timeout: float = 1800,
    ) -> None:
        super().__init__(
            data_parallel_size,
            tensor_parallel_size,
            save_distributed_checkpoint,
            process_group_backend,
            timedelta(seconds=timeout),
        )

    def setup_environment(self) -> None:
        """Settle the sizes, which are known only now."""
        if self._data_parallel_size == "auto":
            self._data_parallel_size = max(
                1, self.num_nodes * self.num_processes // int(self._tensor_parallel_size)
            )
        super().setup_environment()

    @property
    def processes(self) -> Processes:
        """All processes of the run."""
        return Processes(self.global_rank, self.world_size, _gatherer(self.world_size))

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint and its manifest.

        Raises:
            DiskFull: no room; what was saved before is as it was.
        """
        if not self._save_distributed_checkpoint or storage_options is not None:
            super().save_checkpoint(checkpoint, filepath, storage_options)
            return
        processes = self.processes
        place = Path(processes.broadcast(str(filepath)))
        save_sharded(checkpoint, place, processes)
        if processes.rank == 0 and isinstance(self.checkpoint_io, AtomicCheckpointIO):
            self.checkpoint_io.remove_superseded(place.parent)
        self.barrier()

    def load_checkpoint(
        self, checkpoint_path: str | Path, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read weights and optimisers into place, and return the rest; see :class:`AtomicCheckpointIO`.

        Raises:
            CheckpointError: it and its neighbours are damaged.
        """
        processes = self.processes
        place = Path(processes.broadcast(str(checkpoint_path)))
        if not place.exists() and read_manifest(place) is None:
            raise FileNotFoundError(f"no checkpoint {place}")
        place = place.resolve()

        def digest_of(path: Path) -> str:
            return shared_sha256(path, processes.rank, processes.world, processes.gather)

        # The neighbours are looked at by process zero alone: rare, and then nobody waits for equal steps.
        place = intact(
            place, digest_of, lambda look: processes.broadcast(look() if processes.rank == 0 else None)
        )
        return self._load(place)

    def _load(self, place: Path) -> dict[str, Any]:
        assert self.model is not None
        states: list[dict[str, Any]] = [get_optimizer_state_dict(self.model, one) for one in self.optimizers]
        order = [[name for group in s["param_groups"] for name in group["params"]] for s in states]
        checkpoint, source = load_parted(place, order)
        target: dict[str, Any] = get_model_state_dict(self.model)
        for name in checkpoint["state_dict"]:
            # A weight that this model lacks is the module's to refuse, by name.
            if name in target:
                source.fill(f"weights/{name}", target[name])
        for number, (optimizer, state) in enumerate(zip(self.optimizers, states, strict=True)):
            saved = checkpoint["optimizer_states"][number]
            state["param_groups"] = saved["param_groups"]
            for (weight, key), name in tensor_names(saved, number).items():
                source.fill(name, state["state"][weight][key])
            set_optimizer_state_dict(self.model, optimizer, state)
        return checkpoint


def _gatherer(world: int) -> Callable[[Any], list[Any]]:
    def gather(value: Any) -> list[Any]:
        found: list[Any] = [None] * world
        torch.distributed.all_gather_object(found, value)
        return found

    return gather


if "fsdp2" not in StrategyRegistry:
    StrategyRegistry.register("fsdp2", ShardedStrategy, "ModelParallelStrategy, with atomic checkpoints")
