"""The benchmark runs, counts what it says, and refuses to compare what differs."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "rollouts.py"


@pytest.fixture
def rollouts(monkeypatch: pytest.MonkeyPatch) -> Any:
    spec = importlib.util.spec_from_file_location("rollouts_benchmark", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # A dataclass looks its module up by name.
    monkeypatch.setitem(sys.modules, "rollouts_benchmark", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "LONGEST", 12)
    return module


def test_prompts_have_the_lengths_that_are_promised(rollouts) -> None:
    lengths = sorted(map(len, rollouts.prompts(400, 0)))
    assert lengths[0] >= 20
    assert lengths[-1] == 200
    assert 50 <= lengths[200] <= 70


@pytest.mark.slow
def test_a_table(rollouts, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollouts, "CASES", [(4, 2)])
    assert rollouts.main(["--pairs", "2", "--group", "2"]) == 0
    printed = capsys.readouterr().out
    assert "NativeGenerator" in printed
    assert "2 completion(s) a prompt, 2 pairs" in printed


@pytest.mark.slow
def test_other_text_stops_it(rollouts) -> None:
    policy, model = rollouts.Policy(rollouts.build()), rollouts.build()
    given = rollouts.prompts(2, 0)
    rollouts.check(policy, model, given, 1, 2)
    model.model.norm.weight.data.neg_()
    with pytest.raises(SystemExit, match="greedy completions differ"):
        rollouts.check(policy, model, given, 1, 2)
