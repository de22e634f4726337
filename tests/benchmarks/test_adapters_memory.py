"""The benchmark of adapters runs, and every workload takes the steps that it says."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "adapters_memory.py"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("adapters_memory", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    tiny = {"vocab_size": 1024, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    monkeypatch.setattr(module, "ARCHITECTURE", module.ARCHITECTURE | tiny)
    return module


def test_every_workload_reports_its_memory(benchmark: ModuleType, tmp_path: Path) -> None:
    benchmark.prepare(tmp_path)
    for workload in benchmark.WORKLOADS:
        cost = benchmark.run(workload, tmp_path, 2, 16, 1)
        # A process with torch in it holds more than 100 MB, and the peak is at least what it began with.
        assert 100 < cost["before"] <= cost["peak"], workload


def test_the_table_is_relative_to_sft(benchmark: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    """(1600 - 1000) / (1500 - 1000) = 1.2 of the growth, 1600 / 1500 = 1.067 of the peak."""
    peaks = dict(zip(benchmark.WORKLOADS, (1500.0, 1500.0, 1600.0, 1500.0), strict=True))
    benchmark.report({name: {"before": 1000.0, "peak": peak} for name, peak in peaks.items()}, "MB")
    line = next(line for line in capsys.readouterr().out.splitlines() if "value adapter" in line)
    assert line.replace("│", " ").split()[-2:] == ["1.067", "1.200"]
