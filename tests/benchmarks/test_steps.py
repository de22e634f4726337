"""The benchmark runs, and measures what it says."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "steps.py"


@pytest.mark.slow
def test_the_benchmark_prints_a_line_per_algorithm(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIT_ALIGN_CACHE", str(tmp_path))
    spec = importlib.util.spec_from_file_location("steps", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    steps = importlib.util.module_from_spec(spec)
    # A dataclass looks its module up by name.
    monkeypatch.setitem(__import__("sys").modules, "steps", steps)
    spec.loader.exec_module(steps)
    found = {cost.name: cost for cost in steps.costs(2)}
    assert list(found) == ["SFT", "RewardModel", "DPO"]
    for cost in found.values():
        assert cost.cpu_seconds > 0
        # 16 rows of some tens of tokens; a pair has two completions, each counted with its prompt.
        assert 16 * 20 < cost.tokens < 16 * 200
    assert found["DPO"].tokens == found["RewardModel"].tokens > found["SFT"].tokens
    monkeypatch.setattr(steps, "costs", lambda count: list(found.values()))
    assert steps.main(["--steps", "2"]) == 0
    printed = capsys.readouterr().out
    assert "DPO" in printed
    assert "torch 2." in printed
