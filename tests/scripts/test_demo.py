"""The demo holds what it promises, and says so when it does not."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "demo.py"


@pytest.fixture(scope="module")
def demo() -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIT_ALIGN_CACHE", str(tmp_path / "cache"))


@pytest.mark.slow
def test_the_demo_keeps_its_promise(
    demo: ModuleType, tmp_path: Path, own_cache: None, capsys: pytest.CaptureFixture[str]
) -> None:
    status = demo.main(["--directory", str(tmp_path), "--samples", "100"])
    printed = capsys.readouterr().out
    assert status == 0, printed
    assert "polite replies, sampled at temperature 1" in printed
    assert (tmp_path / "runs/dpo/1/export/model.safetensors").is_file()
    assert not list(tmp_path.glob("demo-*")), "it leaves nothing but its run"


@pytest.mark.slow
def test_a_model_that_learned_nothing_fails_the_demo(
    demo: ModuleType, tmp_path: Path, own_cache: None, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "--directory",
        str(tmp_path),
        "--samples",
        "20",
        "--",
        "--model.lr=0",
        "--trainer.max_steps=1",
    ]
    assert demo.main(arguments) == 1
    assert "the promise does not hold" in capsys.readouterr().out


def test_each_part_of_the_promise_is_checked(demo: ModuleType) -> None:
    before = demo.Figures(preferred=0.5, polite=0.5, helpful=0.9, sums=0.5)
    assert demo.Figures(0.95, 0.95, 0.9, 0.4).faults(before) == []
    (fault,) = demo.Figures(0.949, 0.95, 0.9, 0.5).faults(before)
    assert "pairs preferred 94.9%" in fault
    (fault,) = demo.Figures(0.95, 0.949, 0.9, 0.5).faults(before)
    assert "polite replies 94.9%" in fault
    (fault,) = demo.Figures(0.95, 0.95, 0.9, 0.39).faults(before)
    assert "sums 50.0% before, 39.0% after" in fault


def test_figures_are_read_from_the_commands(
    demo: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Two customers, one answered politely with the right advice; two sums, one right."""
    monkeypatch.chdir(tmp_path)

    def fake(command: list[str]) -> int:
        if command[0] == "validate":
            print("│ val/rewards/accuracies  │  0.6250 │")
            return 0
        rows = [
            json.loads(line)
            for line in Path(command[command.index("--prompts") + 1]).read_text().splitlines()
        ]
        for number, row in enumerate(rows):
            good = (
                f"We are sorry. Please {row.get('advice')}." if "advice" in row else f"It is {row['answer']}."
            )
            row["completion"] = good if number == 0 else "Whatever, I do not know."
        Path(command[command.index("--output") + 1]).write_text("\n".join(map(json.dumps, rows)))
        return 0

    monkeypatch.setattr(demo, "lit_align", fake)
    figures, replies = demo.measure("any/model", 2)
    assert figures == demo.Figures(preferred=0.625, polite=0.5, helpful=0.5, sums=0.5)
    assert [reply for _, reply in replies][1] == "Whatever, I do not know."


def test_a_failing_command_is_shown(demo: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "lit_align", lambda command: print("error: no such thing") or 2)
    with pytest.raises(RuntimeError, match="lit-align env failed:\nerror: no such thing"):
        demo.run_silently(["env"])
