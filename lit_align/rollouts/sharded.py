"""Generation with weights that are spread over processes (FSDP2).

Each forward pass gathers weights from all processes, so all must make equally many, whoever has finished
first. And embedding and head belong to the root group, which is gathered when the policy itself is called;
generation calls the model inside it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from lit_align.batches import Forest


@contextmanager
def whole_root(
    policy: nn.Module, value_head: nn.Module | None = None
) -> Iterator[tuple[bool, Callable[[Tensor], Tensor] | None]]:
    """The weights of the root group, and of a value head, whole inside the block.

    Yields:
        Whether the policy is sharded at all, and what to call for values, which waits for nobody.
    """
    from torch.distributed.fsdp import FSDPModule

    if not isinstance(policy, FSDPModule):
        yield False, value_head
        return
    # The first call of a sharded module makes it the root of its groups; nothing of ours may come before.
    policy(Forest.from_lists([[0]], [[[0]]]).to(next(policy.parameters()).device))
    groups = [policy] + ([value_head] if isinstance(value_head, FSDPModule) else [])
    for group in groups:
        group.unshard()
    try:
        # Calling the module itself would gather and spread its weights again.
        yield True, None if value_head is None else value_head.forward
    finally:
        for group in groups:
            group.reshard()


def check_sampling(strategy: Any) -> None:
    """Refuse to sample where weights are not there between the steps of a module.

    Raises:
        ValueError: under DeepSpeed's ZeRO 3, which gathers them in the ``forward`` of each layer alone.
    """
    if getattr(strategy, "zero_stage_3", False):
        raise ValueError(
            "completions cannot be sampled under ZeRO 3, whose weights are whole only while a layer of the "
            "module runs: use --trainer.strategy zero2, fsdp2 or ddp"
        )
