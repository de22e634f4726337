"""Every example does what it says."""

import difflib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
FOREIGN = EXAMPLES / "foreign_project"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIT_ALIGN_CACHE", str(tmp_path / "cache"))


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_foreign(script: str, *arguments: str, folder: Path | None = None) -> str:
    command = [sys.executable, str(FOREIGN / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def code_lines(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]


def changes(before: str, after: str) -> tuple[list[str], list[str]]:
    """Lines of code that one script has more, and less, than another."""
    found = list(difflib.ndiff(code_lines(FOREIGN / before), code_lines(FOREIGN / after)))
    return [c[2:] for c in found if c.startswith("+ ")], [c[2:] for c in found if c.startswith("- ")]


def test_callbacks_are_added_to_the_foreign_project_in_a_line_each() -> None:
    added, removed = changes("train.py", "train_callbacks.py")
    assert removed == []
    (imported, *lines) = added
    names = imported.removeprefix("from lit_align.callbacks import ").split(", ")
    assert sorted(line.strip().split("(")[0] for line in lines) == names


def test_dpo_is_added_to_the_foreign_project_in_ten_lines() -> None:
    added, removed = changes("train_callbacks.py", "train_dpo.py")
    assert 0 < len(added) <= 10, added
    assert removed == ["from data import ChatData", "data = ChatData(module.tokenizer)"]


def test_the_readme_shows_these_lines() -> None:
    readme = (EXAMPLES.parent / "README.md").read_text(encoding="utf-8")
    blocks = [block.split("```")[0].splitlines() for block in readme.split("```diff\n")[1:]]
    scripts = ["train.py", "train_callbacks.py", "train_dpo.py"]
    for shown, before, after in zip(blocks, scripts[:-1], scripts[1:], strict=True):
        lines = {name: code_lines(FOREIGN / name) for name in (before, after)}
        for line in filter(None, shown):
            assert line[1:] in lines[before if line.startswith("-") else after], line
        added = [line for line in lines[after] if line not in lines[before]]
        without_imports = {line for line in added if not line.startswith("from lit_align.")}
        assert without_imports == {line[1:] for line in shown if line.startswith("+")}


def test_the_foreign_project_knows_nothing_of_us() -> None:
    for name in ("model.py", "data.py"):
        assert "lit_align" not in (FOREIGN / name).read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_foreign_project_trains_without_us() -> None:
    assert "4 steps, train_loss" in run_foreign("train.py")


@pytest.mark.slow
def test_the_foreign_project_with_callbacks(tmp_path: Path) -> None:
    """It trains as without them, shows samples, and a run that is cut off goes on to the same bits."""
    folders = [tmp_path / name for name in ("plain", "whole", "cut")]
    for folder in folders:
        folder.mkdir()
    plain = run_foreign("train.py", "3", folder=folders[0])
    whole = run_foreign("train_callbacks.py", "5", folder=folders[1])
    run_foreign("train_callbacks.py", "3", folder=folders[2])
    resumed = run_foreign("train_callbacks.py", "5", folder=folders[2])
    assert "3 steps, train_loss" in plain
    assert [line for line in whole.splitlines() if "5 steps, train_loss" in line]
    assert "samples at step 4" in whole
    merged = [(folder / "merged/model.safetensors").read_bytes() for folder in folders[1:]]
    assert merged[0] == merged[1]
    samples = [(folder / "samples.jsonl").read_text().splitlines() for folder in folders[1:]]
    # The run that ended at step 3 has looked there, too.
    assert samples[0] == [line for line in samples[1] if json.loads(line)["step"] != 3]
    loss = [
        next(x for x in text.splitlines() if "5 steps" in x).rpartition(" ")[2] for text in (whole, resumed)
    ]
    assert loss[0] == loss[1]


@pytest.mark.slow
def test_the_foreign_project_trains_with_dpo(tmp_path: Path) -> None:
    # Its own callback still prints. ln 2 at the first step, and below it after four.
    printed = next(line for line in run_foreign("train_dpo.py").splitlines() if "4 steps, train_loss" in line)
    assert 0.3 < float(printed.rpartition(" ")[2]) < 0.6931
    assert (tmp_path / "merged/config.json").exists()
    assert (tmp_path / "samples.jsonl").exists()


def test_own_loss() -> None:
    metrics = load("own_loss").main(steps=5)
    assert metrics["train/rewards/margins"] > 0
    # -log sigmoid(-1) = 1.3133 at the start, and a fifth of a likelihood on top.
    assert 1.2 < metrics["train/loss"] < 1.4


def test_own_data_becomes_pairs_with_margins() -> None:
    example = load("own_data")
    pairs: list[dict[str, Any]] = list(example.pairs(example.THREADS[:1]))
    assert len(pairs) == 6
    assert all(pair["margin"] > 0 for pair in pairs)
    assert pairs[-1]["chosen"][0]["content"] == "Read the manual."
    assert pairs[-1]["rejected"][0]["content"] == "Whatever."


def test_own_data_trains() -> None:
    metrics = load("own_data").main(steps=10)
    assert metrics["val/accuracy"] > 0.5
    assert metrics["val/margin"] > 0


def run_notebook(name: str) -> dict[str, Any]:
    """Its cells in order, in one namespace, as a kernel would; no kernel is needed for that."""
    notebook = json.loads((EXAMPLES / name).read_text(encoding="utf-8"))
    namespace: dict[str, Any] = {}
    for number, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] == "code":
            source = "".join(cell["source"])
            assert not cell["outputs"], "outputs are not kept in the repository"
            exec(compile(source, f"cell {number}", "exec"), namespace)
    return namespace


@pytest.mark.slow
def test_the_notebook_runs(capsys: pytest.CaptureFixture[str]) -> None:
    namespace = run_notebook("notebook.ipynb")
    after = sum(map(namespace["tasks"].is_polite, namespace["after"]))
    assert after >= 6, capsys.readouterr().out


@pytest.mark.slow
def test_the_notebook_of_callbacks_runs() -> None:
    found = run_notebook("foreign_project.ipynb")
    assert found["same"]
    assert found["gap"] <= 1e-5
    assert found["kl"] > 0.01
    assert found["last"]["before"] != found["last"]["completion"]
    assert found["last"]["completion"].startswith("We are sorry about your lamp")


def test_a_loop_of_ones_own_trains() -> None:
    before, after = load("ppo_step").main(rounds=12)
    assert after > before + 0.15
