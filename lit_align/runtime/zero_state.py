"""Weights and optimiser states that DeepSpeed's ZeRO spreads over processes: put together, and taken apart.

ZeRO 2 leaves the weights of the model whole on each process; ZeRO 3 spreads them too (``ds_tensor``), and
leaves empty tensors in the module. In both, each process optimises a flat float32 tensor: its part of the
weights of a group, which are the exact ones where the model's are in half precision.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Place(NamedTuple):
    """Where the part of a weight that this process optimises is.

    Attributes:
        flat: float32, one dimension: the parts of many weights.
        start: first place in ``flat``.
        first: first place in the weight, as one dimension.
        length: how many; 0 where this process has nothing of it.
    """

    flat: Tensor
    start: int
    first: int
    length: int

    def read(self, flat: Tensor, target: Tensor) -> None:
        """Copy this part of ``flat`` to where it belongs in a whole ``target``."""
        target.view(-1)[self.first : self.first + self.length] = flat[self.start : self.start + self.length]

    def write(self, flat: Tensor, whole: Tensor) -> None:
        """Copy this part of a ``whole`` tensor to ``flat``."""
        part = whole.reshape(-1)[self.first : self.first + self.length]
        flat[self.start : self.start + self.length].copy_(part)


class ZeroState:
    """The weights and states of a ZeRO optimiser, as those of the optimiser it was made from.

    Args:
        zero: DeepSpeed's optimiser, of stage 2 or 3.
        groups: the trained parameters in the order of the optimiser that it was made from.
    """

    def __init__(self, zero: Any, groups: Sequence[Sequence[nn.Parameter]]) -> None:
        self.zero, self.groups = zero, groups
        self._group = {id(p): number for number, group in enumerate(groups) for p in group}

    def optimises(self, parameter: Tensor) -> bool:
        """Whether it is trained."""
        return id(parameter) in self._group

    def whole_weight(self, parameter: Tensor) -> Tensor:
        """A trained weight as the optimiser has it, float32, on all processes. Collective."""
        place = self._place(parameter)
        return self._gather(parameter, place, place.flat)

    @torch.no_grad()
    def set_weight(self, parameter: Tensor, value: Tensor) -> None:
        """Let the optimiser go on from a whole weight, the same on all processes."""
        place = self._place(parameter)
        place.write(place.flat, value)

    def state_dict(self, keep: bool) -> dict[str, Any]:
        """The states as the optimiser would have them alone. Collective.

        Args:
            keep: whether this process wants them, on the host.

        Raises:
            ValueError: the optimiser keeps states that are not one number for each weight.
        """
        states: dict[int, dict[str, Any]] = {}
        base = self.zero.optimizer
        for number, parameter in enumerate(p for group in self.groups for p in group):
            place = self._place(parameter)
            found: dict[str, Any] = {}
            for key, value in base.state.get(place.flat, {}).items():
                if not isinstance(value, Tensor) or value.ndim == 0:
                    found[key] = value.clone() if isinstance(value, Tensor) else value
                    continue
                if value.shape != place.flat.shape:
                    raise ValueError(
                        f"{type(base).__name__} keeps {key} of shape {tuple(value.shape)}, not one number "
                        "for each weight, which ZeRO cannot spread: take an optimiser such as AdamW"
                    )
                whole = self._gather(parameter, place, value)
                if keep:
                    found[key] = whole.cpu()
            states[number] = found
        return {"state": {n: s for n, s in states.items() if s}, "param_groups": self._hyperparameters()}

    @torch.no_grad()
    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Take up the states of the optimiser alone, the same on all processes."""
        base = self.zero.optimizer
        for number, parameter in enumerate(p for group in self.groups for p in group):
            place = self._place(parameter)
            own = base.state[place.flat]
            for key, value in saved["state"].get(number, {}).items():
                if not isinstance(value, Tensor):
                    own[key] = value
                    continue
                if value.ndim == 0:
                    # A fused optimiser counts its steps on the device of the weights.
                    own[key] = value.to(place.flat.device, copy=True)
                    continue
                if key not in own:
                    own[key] = torch.zeros_like(place.flat, dtype=value.dtype)
                place.write(own[key], value)
        for group, settings in zip(base.param_groups, saved["param_groups"], strict=True):
            group.update({key: value for key, value in settings.items() if key != "params"})

    def _hyperparameters(self) -> list[dict[str, Any]]:
        found, first = [], 0
        for group, own in zip(self.groups, self.zero.optimizer.param_groups, strict=True):
            settings = {key: value for key, value in own.items() if key != "params"}
            found.append(settings | {"params": list(range(first, first + len(group)))})
            first += len(group)
        return found

    def _place(self, parameter: Any) -> Place:
        zero = self.zero
        if hasattr(parameter, "ds_id"):
            group, start, size = zero.grad_position[zero.get_param_id(parameter)]
            first = size * torch.distributed.get_rank()
            flat = zero.fp32_partitioned_groups_flat[group]
            return Place(flat, start, first, max(0, min(size, parameter.ds_numel - first)))
        flat = zero.single_partition_of_fp32_groups[self._group[id(parameter)]]
        mapping = parameter._hp_mapping
        if mapping is None:
            return Place(flat, 0, 0, 0)
        here, there = mapping.hp_fragment_address, mapping.lp_fragment_address
        return Place(flat, here.start, there.start, there.numel)

    @torch.no_grad()
    def _gather(self, parameter: Any, place: Place, flat: Tensor) -> Tensor:
        shape = getattr(parameter, "ds_shape", parameter.shape)
        whole = torch.zeros(shape, dtype=flat.dtype, device=parameter.device)
        place.read(flat, whole)
        torch.distributed.all_reduce(whole)
        return whole


def is_partitioned(tensor: Tensor) -> bool:
    """Whether ZeRO 3 spreads it over processes."""
    return hasattr(tensor, "ds_id")


def own_part(tensor: Any) -> Tensor:
    """The numbers of a tensor that ZeRO 3 spreads which are with this process; none of what fills them up."""
    part: Tensor = tensor.ds_tensor
    first = part.numel() * torch.distributed.get_rank()
    return part.view(-1)[: max(0, tensor.ds_numel - first)]


@contextmanager
def gathered(*tensors: Tensor, writing: bool = False) -> Iterator[None]:
    """Inside the block, tensors that ZeRO 3 spreads are whole. Collective.

    Args:
        tensors: of any kind; others stay as they are.
        writing: keep what process zero writes to them.
    """
    spread = [tensor for tensor in tensors if is_partitioned(tensor)]
    if not spread:
        yield
        return
    from deepspeed.runtime.zero import GatheredParameters

    with GatheredParameters(spread, modifier_rank=0 if writing else None):
        yield
