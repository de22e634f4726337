"""A picture of a run is made from its metrics, and from nothing else."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "plot_run.py"
REWARDS = ("accuracies", "chosen", "margins", "rejected")
HEADER = ",".join(["epoch", "step", "train/loss", *(f"train/rewards/{name}" for name in REWARDS)])


@pytest.fixture(scope="module")
def plot_run() -> ModuleType:
    spec = importlib.util.spec_from_file_location("plot_run", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(tmp_path: Path) -> Path:
    rows = ["0,9,0.69,0.5,0.0,0.0,0.0,,", "0,19,0.4,0.9,0.1,1.1,-1.0,,", "0,19,,,,,,0.45,0.875"]
    (tmp_path / "metrics.csv").write_text(
        "\n".join([f"{HEADER},val/loss,val/rewards/accuracies", *rows]) + "\n"
    )
    return tmp_path


def test_empty_cells_are_no_values(plot_run: ModuleType, run: Path) -> None:
    curves = plot_run.read(run / "metrics.csv")
    assert curves["train/loss"] == ([10, 20], [0.69, 0.4])
    assert curves["val/rewards/accuracies"] == ([20], [0.875])


def test_a_small_picture_is_written(plot_run: ModuleType, run: Path) -> None:
    pytest.importorskip("matplotlib", reason="pip install -e '.[dev]'")
    assert plot_run.main([str(run)]) == 0
    picture = (run / "metrics.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) < 100_000


def test_a_run_without_metrics_is_refused(
    plot_run: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plot_run.main([str(tmp_path)]) == 1
    assert "give the directory of a run" in capsys.readouterr().err


def test_a_run_of_another_algorithm_is_refused(
    plot_run: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "metrics.csv").write_text("epoch,step,train/loss\n0,9,1.5\n")
    assert plot_run.main([str(tmp_path)]) == 1
    assert "has no train/rewards/accuracies" in capsys.readouterr().err
