"""What a model or a file says is shown, and neither moves the terminal nor becomes part of a page."""

from pathlib import Path
from typing import Any

import pytest

from lit_align.__main__ import main
from lit_align.callbacks.reporting import markdown
from lit_align.callbacks.sample_table import Sample, render, table
from lit_align.cli.report import print_metrics
from lit_align.cli.terminal import printable

TERMINAL = {
    "colour": "\x1b[31mred",
    "cursor": "\x1b[2J\x1b[1;1H",
    "window title": "\x1b]0;owned\x07",
    "clipboard": "\x1b]52;c;dG91Y2g=\x07",
    "hyperlink": "\x1b]8;;file:///etc/passwd\x1b\\link\x1b]8;;\x1b\\",
    "device control": "\x1bP+q544e\x1b\\",
    "C1 control": "\x9b31mred",
    "carriage return": "all good\rrm -rf /",
    "backspaces": "safe\x08\x08\x08\x08evil",
    "turned around": "\u202egnp.exe",
}
PAGE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "</td></table><iframe src=//x>",
    "&lt;b&gt;<b>",
]


def dangerous(text: str) -> list[str]:
    return [c for c in text if (not c.isprintable() and c not in "\n\t") or 0x80 <= ord(c) < 0xA0]


@pytest.mark.parametrize("name", TERMINAL)
def test_completions_in_the_terminal(name: str) -> None:
    text = TERMINAL[name]
    assert not dangerous(printable(text))
    assert not dangerous(render("samples", table([Sample(0, "greedy", text, text, text)])))


@pytest.mark.parametrize("name", TERMINAL)
def test_errors_about_a_file(name: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import json

    (here / "rows.jsonl").write_text(json.dumps({"prompt": "a", TERMINAL[name]: "b"}) + "\n")
    assert main(["fit", "--config=sft.yaml", "--data.train=rows.jsonl", "--data.cache=false"]) in (1, 2)
    assert not dangerous(capsys.readouterr().err)


@pytest.mark.parametrize("text", ["[bold]x[/bold]", "[link=/x]y[/link]", "[/]", "[on red]"])
def test_markup_of_the_console_is_text(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert text in render("samples", table([Sample(0, "greedy", text, None, text)]))
    print_metrics("validate", [{text: 1.0}])
    assert text in capsys.readouterr().out


@pytest.mark.parametrize("text", PAGE)
def test_completions_in_a_page(text: str) -> None:
    shown = markdown(["now"], [[text]])
    assert "<" not in shown.replace("<br>", "")


def test_a_cell_stays_a_cell() -> None:
    shown: Any = markdown(["a", "b"], [["one | two\nthree", "x"]]).splitlines()
    assert len(shown) == 3
    assert shown[2].replace("\\|", "").count("|") == 3
