"""Where nothing is sharded, looking at a model and changing it is plain; two_process/ has the shards."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from lit_align.callbacks.sharding import (
    is_sharded,
    mix_in,
    refuse_spread,
    run_inside,
    spread_like,
    trained_weights,
    whole,
)
from lit_align.callbacks.whole_model import whole_model


@pytest.mark.parametrize(
    ("name", "told"),
    [("FSDPStrategy", "FSDPStrategy has"), ("ZeroStrategy", "ZeroStrategy, ZeRO 3, has")],
)
def test_strategies_without_whole_weights_are_refused(name: str, told: str) -> None:
    strategy: Any = type(name, (), {"zero_stage_3": True})()
    with pytest.raises(ValueError, match=f"X reads the model between steps, and {told} no whole weights"):
        refuse_spread(SimpleNamespace(strategy=strategy), "X")
    for fine in ("SingleDeviceStrategy", "DDPStrategy", "ModelParallelStrategy", "ZeroStrategy"):
        refuse_spread(SimpleNamespace(strategy=type(fine, (), {})()), "X")


def test_mixing() -> None:
    """A quarter of 4 and three quarters of 0 is 1; of bfloat16 in float32: 1 + 2^-9 of 2 rounds to 1."""
    target = torch.zeros(2)
    mix_in([target], [torch.full((2,), 4.0)], 0.25)
    assert target.tolist() == [1, 1]
    low = torch.ones(1, dtype=torch.bfloat16)
    mix_in([low], [torch.full((1,), 3.0)], 2**-9)
    assert low.dtype == torch.bfloat16
    assert low.item() == 1


def test_a_whole_model_is_itself() -> None:
    model = nn.Linear(2, 2)
    assert not is_sharded(model)
    assert whole_model(model) is model
    assert whole_model(model, keep=False) is None
    assert run_inside(nn.Sequential(model), model, lambda: 3) == 3
    model.bias.requires_grad_(False)
    assert list(trained_weights(model)) == ["weight"]
    tensors = {"weight": torch.ones(2, 2)}
    assert whole(tensors) == tensors
    assert torch.equal(spread_like(tensors, {"weight": model.weight})["weight"], tensors["weight"])
