"""Optimiser groups and schedules, worked by hand."""

import math

import pytest
import torch
from torch import nn

from lit_align.algorithms.optim import OptimConfig, build_optimizer, build_schedule, parameter_groups


def factors(config: OptimConfig, total: float, steps: int) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = build_schedule(optimizer, config, total)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_norms_and_biases_are_not_decayed():
    module = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))
    decayed, free = parameter_groups(module, 0.1)
    assert [p.shape for p in decayed["params"]] == [(3, 2)]
    assert decayed["weight_decay"] == 0.1
    assert [p.ndim for p in free["params"]] == [1, 1, 1]
    assert free["weight_decay"] == 0.0


def test_frozen_weights_stay_out():
    module = nn.Linear(2, 2)
    module.weight.requires_grad_(False)
    assert [p.ndim for g in parameter_groups(module, 0.1) for p in g["params"]] == [1]
    module.bias.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter of the policy is trainable"):
        build_optimizer(module, OptimConfig(), 0.1)


def test_linear_falls_to_zero_after_the_warm_up():
    """2 warm-up steps at 1/3 and 2/3, then 1, 3/4, 1/2, 1/4 over the 4 that are left."""
    got = factors(OptimConfig(schedule="linear", warmup=2), total=6, steps=6)
    assert got == pytest.approx([1 / 3, 2 / 3, 1, 0.75, 0.5, 0.25])


def test_warm_up_as_a_share():
    got = factors(OptimConfig(schedule="constant", warmup=0.25), total=8, steps=4)
    assert got == pytest.approx([1 / 3, 2 / 3, 1, 1])


def test_cosine_ends_at_its_floor():
    got = factors(OptimConfig(schedule="cosine", final_lr_ratio=0.1), total=4, steps=6)
    assert got == pytest.approx(
        [0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * s / 4)) for s in (0, 1, 2, 3, 4, 4)]
    )


def test_a_schedule_without_an_end_is_refused():
    with pytest.raises(ValueError, match="give the trainer max_steps"):
        factors(OptimConfig(schedule="linear"), total=math.inf, steps=1)
    assert factors(OptimConfig(schedule="constant", warmup=3), total=math.inf, steps=1) == [0.25]


def test_any_optimiser_by_name_or_callable():
    module = nn.Linear(2, 2)
    by_name = build_optimizer(module, OptimConfig(name="torch.optim.SGD", extra={"momentum": 0.5}), 0.1)
    assert isinstance(by_name, torch.optim.SGD)
    assert by_name.param_groups[0]["momentum"] == 0.5
    by_callable = build_optimizer(module, OptimConfig(name=torch.optim.Adagrad), 0.1)
    assert isinstance(by_callable, torch.optim.Adagrad)


@pytest.mark.parametrize(
    ("name", "message"),
    [("AdamW", "did you mean 'torch.optim.AdamW'"), ("torch.optim.AdamX", "cannot be imported")],
)
def test_a_wrong_name_says_what_is_wrong(name, message):
    with pytest.raises(ValueError, match=message):
        build_optimizer(nn.Linear(1, 1), OptimConfig(name=name), 0.1)


def test_bad_values_are_refused():
    with pytest.raises(ValueError, match="warmup"):
        OptimConfig(warmup=-1)
    with pytest.raises(ValueError, match="schedule"):
        OptimConfig(schedule="poly")  # type: ignore[arg-type]
