"""Gradients are scaled and forgotten where they are; strategies that cannot do either are refused."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, SingleDeviceStrategy

from lit_align.runtime.gradients import (
    check_strategy,
    forget_gradients,
    norm_of_step,
    scale_gradients,
    steps_together,
)


class Keeping:
    """A strategy that keeps gradients to itself."""

    def __init__(self) -> None:
        self.scales: list[float] = []
        self.forgotten = 0

    def scale_gradients(self, scale: torch.Tensor) -> None:
        self.scales.append(float(scale))

    def forget_gradients(self) -> None:
        self.forgotten += 1


@pytest.fixture
def optimizer() -> torch.optim.Optimizer:
    weight = torch.nn.Parameter(torch.ones(2))
    weight.grad = torch.tensor([2.0, 4.0])
    return torch.optim.SGD([weight], lr=1.0)


def weight_of(optimizer: torch.optim.Optimizer) -> Any:
    return optimizer.param_groups[0]["params"][0]


def test_gradients_of_parameters(optimizer: torch.optim.Optimizer) -> None:
    strategy = SingleDeviceStrategy()
    scale_gradients(strategy, optimizer, torch.tensor(0.5))
    assert weight_of(optimizer).grad.tolist() == [1, 2]
    forget_gradients(strategy, optimizer)
    assert weight_of(optimizer).grad is None
    with pytest.raises(RuntimeError, match="no gradients to average: SingleDeviceStrategy keeps them"):
        scale_gradients(strategy, optimizer, torch.tensor(0.5))


def test_gradients_of_a_strategy(optimizer: torch.optim.Optimizer) -> None:
    strategy = Keeping()
    scale_gradients(strategy, optimizer, torch.tensor(0.25))
    forget_gradients(strategy, optimizer)
    assert (strategy.scales, strategy.forgotten) == ([0.25], 1)


def test_strategies_that_average_by_themselves_are_refused() -> None:
    # Not made: both want a GPU.
    with pytest.raises(ValueError, match=r"use --trainer\.strategy zero2 or zero3"):
        check_strategy(DeepSpeedStrategy.__new__(DeepSpeedStrategy))
    with pytest.raises(ValueError, match=r"use --trainer\.strategy fsdp2"):
        check_strategy(FSDPStrategy.__new__(FSDPStrategy))
    check_strategy(SingleDeviceStrategy())
    check_strategy(Keeping())


def test_who_waits_for_whom(optimizer: torch.optim.Optimizer) -> None:
    assert steps_together(Keeping(), [])
    assert not steps_together(SingleDeviceStrategy(), [weight_of(optimizer)])


def test_the_norm_of_a_step_is_where_deepspeed_left_it():
    def engine(norm: Any) -> Any:
        return SimpleNamespace(deepspeed_engine=SimpleNamespace(get_global_grad_norm=lambda: norm))

    assert norm_of_step(engine(torch.tensor(2.5))) == 2.5
    assert norm_of_step(engine(None)) is None
    assert norm_of_step(SingleDeviceStrategy()) is None
