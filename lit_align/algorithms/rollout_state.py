"""State of rollouts in a checkpoint: that of every process, in the one file that is written."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import distributed

from lit_align.rollouts.buffer import merge_states
from lit_align.runtime.data_place import data_place

if TYPE_CHECKING:
    from lit_align.algorithms.on_policy import OnPolicy


def saved(module: "OnPolicy") -> dict[str, Any]:
    """The rollout that is half used, and what its successors depend on; every process has to call this.

    Minibatches whose gradients are in no weight yet, those of an open window of accumulation, come again.
    """
    rollouts, state, own = module.rollouts, module.rollout_state(), module.process_state()
    buffer: dict[str, Any] = {}
    if module.open <= module.buffer.taken:
        buffer = module.buffer.state_dict(give_back=module.open)
    else:
        # The open window began with an earlier rollout. It will be made again, from the same weights.
        rollouts, state, own = module.before
    return {
        # Those that read the same rows hold the same.
        "processes": gathered({"buffer": buffer, "own": own, "state": state})[:: _copies(module)],
        "rollouts": rollouts,
        # Never taken back: a version that was given out once names those weights for good.
        "versions": module.versions,
        "seed": module.seed,
    }


def take_up(module: "OnPolicy", state: dict[str, Any]) -> None:
    """Go on with what :func:`saved` gave, on as many processes or on others."""
    rank, world_size = place(module)
    buffers = merge_states([one["buffer"] for one in state["processes"]], world_size)
    module.buffer.load_state_dict(buffers[rank], module.device)
    module.load_process_states([one["own"] for one in state["processes"]], rank, world_size)
    module.rollouts, module.seed, module.open = state["rollouts"], state["seed"], 0
    module.versions = state["versions"]
    # What reward functions remember differs between processes; to other numbers of them goes the first's.
    same = len(state["processes"]) == world_size
    module.load_rollout_state(state["processes"][rank if same else 0]["state"])


def gathered(state: dict[str, Any]) -> list[dict[str, Any]]:
    """The states of all processes, in the order of their ranks; every process has to call this."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return [state]
    found: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(found, state)
    return found


def place(module: "OnPolicy") -> tuple[int, int]:
    """Rank of this process among those that read different rows, and how many these are."""
    if module._trainer is None:
        return 0, 1
    found = data_place(module.trainer)
    return found.rank, found.size


def _copies(module: "OnPolicy") -> int:
    return 1 if module._trainer is None else data_place(module.trainer).copies


def dealt(items: Sequence[Sequence[Any]], rank: int, world_size: int) -> list[Any]:
    """What the processes of a checkpoint held, dealt out to those that go on.

    Args:
        items: a list per process of the checkpoint.
        rank: of this process.
        world_size: how many there are now; with as many as before each keeps its own.
    """
    if len(items) == world_size:
        return list(items[rank])
    return [item for own in items for item in own][rank::world_size]
