"""Models without memory for their weights, which they get in pieces from process zero.

Process zero builds a model as ever. The others build the same without weights (on torch's ``meta``
device), shard it, and take only the pieces that are theirs: no process but the first ever holds a whole
model. Buffers that no checkpoint has (the frequencies of rotary embeddings) come the same way, so nothing
here knows how an architecture computes them.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lit_align.runtime.sharded_files import WholeTensors

T = TypeVar("T")
_spread: ContextVar[bool] = ContextVar("lit_align_spread", default=False)


@contextmanager
def skeleton(spread: bool) -> Iterator[None]:
    """Inside the block, models get weights on process zero alone; where ``spread`` is false, everywhere.

    All processes enter it.
    """
    token = _spread.set(spread)
    empty = spread and torch.distributed.get_rank() != 0
    try:
        with torch.device("meta") if empty else nullcontext():
            yield
    finally:
        _spread.reset(token)


def in_skeleton() -> bool:
    """Whether models get no weights here."""
    return torch.get_default_device().type == "meta"


def as_on_zero(ask: Callable[[], T]) -> T:
    """The answer to a question about weights; in a skeleton all processes ask, and process zero answers."""
    if not _spread.get():
        return ask()
    told: list[Any] = [ask() if torch.distributed.get_rank() == 0 else None]
    torch.distributed.broadcast_object_list(told, src=0)
    answer: T = told[0]
    return answer


class FromZero:
    """Hands the weights of process zero to the others, before and after they are sharded.

    All processes make one before sharding and call :meth:`fill` after it.

    Args:
        root: holds all models; on process zero with weights.
        device: where the pieces go.

    Raises:
        ValueError: the processes built different models.
    """

    def __init__(self, root: nn.Module, device: torch.device) -> None:
        self.root = root
        self.device = device
        self.is_source = torch.distributed.get_rank() == 0
        own = {name: tensor for name, _, _, tensor in _tensors(root)}
        # As process zero has them: a file may have another dtype than its configuration.
        told: list[Any] = [{n: (tuple(t.shape), t.dtype, t.requires_grad) for n, t in own.items()}]
        torch.distributed.broadcast_object_list(told, src=0)
        self.described: dict[str, tuple[tuple[int, ...], torch.dtype, bool]] = told[0]
        differ = sorted({n for n, d in self.described.items() if n not in own or tuple(own[n].shape) != d[0]})
        differ += sorted(own.keys() - self.described.keys())
        if differ:
            raise ValueError(f"process {torch.distributed.get_rank()} built another model: {differ[:5]}")
        if self.is_source:
            # What is sharded later is a copy, so these stay whole.
            self.whole = {name: tensor.detach() for name, tensor in own.items()}
            return
        for name, tensor in own.items():
            _, dtype, trained = self.described[name]
            if tensor.is_meta and tensor.dtype != dtype:
                tensor.data = tensor.data.to(dtype)
            tensor.requires_grad_(trained)

    @torch.no_grad()
    def fill(self) -> None:
        """Make room for the pieces, and copy them from process zero, one tensor at a time."""
        if not self.is_source:
            self._make_room()
        for name, module, key, tensor in list(_tensors(self.root)):
            shape, dtype, _ = self.described[name]
            if self.is_source:
                whole = self.whole.pop(name).to(self.device).contiguous()
            else:
                whole = torch.empty(shape, dtype=dtype, device=self.device)
            # As bytes, because not every backend knows every dtype.
            torch.distributed.broadcast(whole.reshape(-1).view(torch.uint8), src=0)
            if tensor.is_meta:
                # Neither parameter nor buffer: a plain attribute.
                setattr(module, key, whole)
            else:
                WholeTensors({name: whole}).fill(name, tensor)

    def _make_room(self) -> None:
        before = torch.__future__.get_swap_module_params_on_conversion()
        # Exchanges the content of a parameter, so that tied ones stay one.
        torch.__future__.set_swap_module_params_on_conversion(True)
        try:
            for module in self.root.modules():
                own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
                if any(tensor.is_meta for tensor in own):
                    module.to_empty(device=self.device, recurse=False)
        finally:
            torch.__future__.set_swap_module_params_on_conversion(before)


def _tensors(root: nn.Module) -> Iterator[tuple[str, nn.Module, str, Tensor]]:
    """Every tensor once: its name, its module, its name there, and itself."""
    seen: set[int] = set()
    for path, module in root.named_modules():
        plain = {k: v for k, v in vars(module).items() if isinstance(v, Tensor)}
        for key, tensor in {**module._parameters, **module._buffers, **plain}.items():
            if tensor is not None and id(tensor) not in seen:
                seen.add(id(tensor))
                yield f"{path}.{key}" if path else key, module, key, tensor
