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


def run_foreign(script: str) -> str:
    done = subprocess.run(
        [sys.executable, str(FOREIGN / script)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def code_lines(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]


def test_dpo_is_added_to_the_foreign_project_in_ten_lines() -> None:
    before, after = code_lines(FOREIGN / "train.py"), code_lines(FOREIGN / "train_dpo.py")
    changes = list(difflib.ndiff(before, after))
    added = [line for line in changes if line.startswith("+ ")]
    removed = [line for line in changes if line.startswith("- ")]
    assert 0 < len(added) <= 10, added
    assert removed == ["- from data import ChatData", "- data = ChatData(module.tokenizer)"]


def test_the_readme_shows_these_lines() -> None:
    readme = (EXAMPLES.parent / "README.md").read_text(encoding="utf-8")
    shown = readme[readme.index("```diff\n") :].split("```")[1].splitlines()[1:]
    before, after = code_lines(FOREIGN / "train.py"), code_lines(FOREIGN / "train_dpo.py")
    for line in filter(None, shown):
        assert line[1:] in (before if line.startswith("-") else after), line
    imports = [line for line in after if line.startswith("from lit_align.") and line not in before]
    assert len(imports) == 4
    added = {line for line in after if line not in before} - set(imports)
    assert added == {line[1:] for line in shown if line.startswith("+")}


def test_the_foreign_project_knows_nothing_of_us() -> None:
    for name in ("model.py", "data.py"):
        assert "lit_align" not in (FOREIGN / name).read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_foreign_project_trains_without_us() -> None:
    assert "4 steps, train_loss" in run_foreign("train.py")


@pytest.mark.slow
def test_the_foreign_project_trains_with_dpo() -> None:
    # Its own callback still prints. ln 2 at the first step, and below it after four.
    printed = next(line for line in run_foreign("train_dpo.py").splitlines() if "4 steps, train_loss" in line)
    assert 0.3 < float(printed.rpartition(" ")[2]) < 0.6931


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


@pytest.mark.slow
def test_the_notebook_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """Its cells in order, in one namespace, as a kernel would; no kernel is needed for that."""
    notebook = json.loads((EXAMPLES / "notebook.ipynb").read_text(encoding="utf-8"))
    namespace: dict[str, Any] = {}
    for number, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] == "code":
            source = "".join(cell["source"])
            assert not cell["outputs"], "outputs are not kept in the repository"
            exec(compile(source, f"cell {number}", "exec"), namespace)
    after = sum(map(namespace["tasks"].is_polite, namespace["after"]))
    assert after >= 6, capsys.readouterr().out
