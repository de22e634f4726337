"""What the measurements put into pages; the runs themselves take minutes and are not made here."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def measure_docs() -> ModuleType:
    monkeypatch = pytest.MonkeyPatch()
    # As Python does for a script that is run.
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    spec = importlib.util.spec_from_file_location("measure_docs", ROOT / "scripts" / "measure_docs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.undo()
    return module


def test_a_text_goes_between_its_marks_and_nowhere_else(measure_docs: ModuleType, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "a\n<!-- measured: sft -->\n\nold\n\n<!-- end -->\nb\n<!-- measured: dpo -->\n<!-- end -->\n"
    )
    measure_docs.write(page, "sft", r"new \1 text")
    expected = (
        "a\n<!-- measured: sft -->\n\nnew \\1 text\n\n<!-- end -->\nb\n<!-- measured: dpo -->\n<!-- end -->\n"
    )
    assert page.read_text() == expected
    measure_docs.write(page, "sft", r"new \1 text")
    assert page.read_text() == expected


def test_a_page_without_the_mark_is_an_error(measure_docs: ModuleType, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- measured: dpo -->\n<!-- end -->\n")
    with pytest.raises(ValueError, match="has no '<!-- measured: sft -->'"):
        measure_docs.write(page, "sft", "text")
    assert page.read_text() == "<!-- measured: dpo -->\n<!-- end -->\n"


def test_metrics_are_read_from_a_table(measure_docs: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    printed = """
│      val/loss             │     0.6931471824645996     │
│  val/rewards/margins      │    -0.0125                 │
"""
    monkeypatch.setattr(measure_docs, "run_silently", lambda arguments: printed)
    assert measure_docs.validation(["validate"]) == {
        "loss": "0.6931471824645996",
        "rewards/margins": "-0.0125",
    }


def test_a_run_becomes_a_table_with_its_commands(
    measure_docs: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = []

    def run(arguments: list[str]) -> str:
        asked.append(arguments)
        if arguments[0] == "fit":
            (tmp_path / "runs" / "reward" / "10").mkdir(parents=True)
            (tmp_path / "runs" / "reward" / "9").mkdir()
            return ""
        number = "0.9" if "--ckpt_path" in arguments else "0.5"
        return "\n".join(f"val/{name}   {number}" for name in measure_docs.METRICS["reward"])

    monkeypatch.setattr(measure_docs, "run_silently", run)
    monkeypatch.chdir(tmp_path)
    run_folder, text = measure_docs.measure_config("reward")
    # The tenth run came after the ninth, though not in the order of letters.
    assert run_folder == Path("runs/reward/10")
    assert [arguments[0] for arguments in asked] == ["validate", "fit", "validate"]
    assert asked[2][-1] == "runs/reward/10/checkpoints/last.ckpt"
    lines = text.splitlines()
    assert re.match(
        r"`lit-align fit --config reward\.yaml` \(seed 0, \d+ CPU seconds\), on the 400 held", lines[0]
    )
    assert lines[5:] == [f"| `val/{name}` | 0.5 | 0.9 |" for name in measure_docs.METRICS["reward"]]


def test_every_configuration_has_a_page_with_its_mark(measure_docs: ModuleType) -> None:
    for name in measure_docs.METRICS:
        page = (ROOT / f"docs/algorithms/{name}.md").read_text(encoding="utf-8")
        assert f"<!-- measured: {name} -->" in page, name
    assert "<!-- measured: demo -->" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_what_is_validated_on_is_what_the_metrics_are_of(measure_docs: ModuleType) -> None:
    assert measure_docs.held_out("dpo") == "the 400 held-out rows"
    assert measure_docs.held_out("grpo").startswith("one sampled answer")
