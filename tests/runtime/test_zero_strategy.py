"""What ZeRO's strategy says without DeepSpeed; tests/two_process/test_zero.py runs it."""

import importlib.util
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.strategies import StrategyRegistry

from lit_align.runtime.zero_strategy import ZeroStrategy


def test_names_on_the_command_line() -> None:
    for name, stage in (("zero2", 2), ("zero3", 3)):
        assert StrategyRegistry[name]["strategy"] is ZeroStrategy
        assert StrategyRegistry[name]["init_params"] == {"stage": stage}


def test_other_stages_are_refused() -> None:
    with pytest.raises(ValueError, match="stage is 1; ZeroStrategy knows ZeRO 2 and 3"):
        ZeroStrategy(1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("algorithm", "precision", "told"),
    [("value", "32-true", "DeepSpeed clips by the norm"), (None, "16-mixed", "too large for float16")],
)
def test_what_it_cannot_do_is_refused(algorithm: Any, precision: str, told: str) -> None:
    strategy: Any = ZeroStrategy.__new__(ZeroStrategy)
    trainer = SimpleNamespace(gradient_clip_algorithm=algorithm, training=True)
    strategy._lightning_module = SimpleNamespace(trainer=trainer)
    strategy._model = object()
    strategy._precision_plugin = SimpleNamespace(precision=precision)
    with pytest.raises(ValueError, match=told):
        strategy.init_deepspeed()


def test_without_deepspeed(monkeypatch: pytest.MonkeyPatch) -> None:
    find: Any = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "deepspeed" else find(name))
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'lit-align\[deepspeed\]'"):
        ZeroStrategy(2)
