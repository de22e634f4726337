"""Flat parts of weights; tests/two_process/test_zero.py puts real ones together."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lit_align.runtime.health import all_finite
from lit_align.runtime.zero_state import Place, ZeroState, gathered, is_partitioned, own_part


def test_a_part_goes_and_comes_back() -> None:
    """Three numbers, from the second of a 2 x 3 weight on, are the last three of a flat tensor of five."""
    flat = torch.zeros(5)
    place = Place(flat, start=2, first=1, length=3)
    place.write(flat, torch.arange(6.0).view(2, 3))
    assert flat.tolist() == [0, 0, 1, 2, 3]
    whole = torch.zeros(2, 3)
    place.read(flat, whole)
    assert whole.tolist() == [[0, 1, 2], [3, 0, 0]]


def test_states_that_are_not_one_number_per_weight_are_refused() -> None:
    weight = torch.nn.Parameter(torch.zeros(4, 2))
    flat = torch.zeros(8)
    base = torch.optim.SGD([weight], lr=1.0)
    base.state[flat]["row_means"] = torch.zeros(4)
    zero = SimpleNamespace(optimizer=base, single_partition_of_fp32_groups=[flat])
    here = SimpleNamespace(start=0, numel=8)
    weight._hp_mapping = SimpleNamespace(hp_fragment_address=here, lp_fragment_address=here)  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="SGD keeps row_means of shape"):
        ZeroState(zero, [[weight]]).state_dict(keep=True)


def test_steps_are_counted_where_the_weights_are() -> None:
    """A checkpoint is read on the host; a fused optimiser wants its count beside the weights."""
    weight = torch.nn.Parameter(torch.zeros(4, 2))
    flat = torch.zeros(8, device="meta")
    base = torch.optim.AdamW([flat], lr=1.0)
    zero = SimpleNamespace(optimizer=base, single_partition_of_fp32_groups=[flat])
    here = SimpleNamespace(start=0, numel=8)
    weight._hp_mapping = SimpleNamespace(hp_fragment_address=here, lp_fragment_address=here)  # type: ignore[attr-defined]
    state = {"step": torch.tensor(3.0), "exp_avg": torch.ones(4, 2)}
    ZeroState(zero, [[weight]]).load_state_dict({"state": {0: state}, "param_groups": [{"lr": 0.5}]})
    assert base.state[flat]["step"].device.type == "meta"
    assert base.state[flat]["exp_avg"].device.type == "meta"
    assert base.param_groups[0]["lr"] == 0.5


@pytest.mark.parametrize(("rank", "own"), [(0, [1, 2]), (1, [3]), (2, [])])
def test_what_fills_a_part_up_is_not_looked_at(
    rank: int, own: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three numbers over three processes: parts of two, and nobody has written the rest."""
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: rank)
    part = torch.tensor([[1.0, 2.0], [3.0, float("nan")], [float("nan")] * 2][rank])
    spread: Any = torch.nn.Parameter(torch.empty(0))
    spread.ds_id, spread.ds_tensor, spread.ds_numel = 0, part, 3
    assert own_part(spread).tolist() == own
    assert all_finite([spread])


def test_ordinary_tensors_are_whole() -> None:
    tensor = torch.ones(2)
    assert not is_partitioned(tensor)
    with gathered(tensor, writing=True):
        tensor.mul_(2)
    assert tensor.tolist() == [2, 2]
