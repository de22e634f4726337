"""The pages of README.md and docs/: their blocks, and how one is run; see test_docs.py."""

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lit_align.__main__ import main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(
    r"(?:^<!-- test: (?P<marks>.+?) -->\n)?^```(?P<language>\w+)\n(?P<body>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
#: Commands that a test cannot run, by how they begin, and why.
EXEMPT = {
    "make demo": "tests/scripts/test_demo.py runs the script it calls",
    "make test": "this is what runs it",
    "make lint": "CI runs it beside the tests",
    "make docs": "test_site builds the site with the same command",
    "make bench": "tests/benchmarks runs the script it calls",
    "python benchmarks/compare.py": "needs an environment with TRL; tests/benchmarks runs our side",
    "python examples/sentiment/run.py": "tests/examples/test_sentiment.py runs it on reviews of its own",
    "python -m venv": "the suite runs in an environment that was installed so",
    "pip install": "the suite runs in an environment that was installed so",
    ".venv/bin/pre-commit": "changes the repository's hooks",
}


@dataclass
class Block:
    """A fenced block of a page."""

    language: str
    body: str
    line: int
    marks: dict[str, list[str]] = field(default_factory=dict)


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = []
    for match in FENCE.finditer(text):
        marks: dict[str, list[str]] = {}
        for mark in re.split(r", (?=append|replace|slow|fails|begins|exempt)", match["marks"] or ""):
            name, _, value = mark.partition(" ")
            if name:
                marks.setdefault(name.rstrip(":"), []).append(value)
        found.append(Block(match["language"], match["body"], text[: match.start()].count("\n") + 1, marks))
    return found


def python_block(page: Path, contains: str) -> str:
    return next(b.body for b in blocks(page) if b.language == "python" and contains in b.body).split(
        "\ntrainer = "
    )[0]


def run_python(body: str, namespace: dict[str, Any], place: str) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), quiet():
        exec(compile(body, place, "exec"), namespace)
    return out.getvalue()


def run_bash(body: str, marks: dict[str, list[str]], place: str) -> str:
    printed = ""
    for command in body.replace("\\\n", " ").splitlines():
        if not command.strip() or command.startswith(("#", *EXEMPT)):
            continue
        if re.search(r"(^|\s)lit-align fit\b", command):
            command = " ".join([command, *marks.get("append", [])])
        status, text = run_command(command)
        assert (status != 0) == ("fails" in marks), f"{place}: {command}\nexit status {status}\n{text}"
        printed += text
    return printed if "fails" in marks else ""


def run_command(command: str) -> tuple[int, str]:
    """Run one line: our own commands in this process, where torch is imported already."""
    feed, pipe, rest = command.rpartition(" | ")
    words = shlex.split(rest if pipe else command)
    variables = {}
    while "=" in words[0]:
        name, _, variables[name] = words.pop(0).partition("=")
    if words[0] != "lit-align":
        words[0] = sys.executable if words[0] == "python" else words[0]
        done = subprocess.run(words, capture_output=True, text=True, env=os.environ | variables, check=False)
        return done.returncode, done.stdout + done.stderr
    stdin = (
        subprocess.run(feed, shell=True, capture_output=True, text=True, check=True).stdout if pipe else ""
    )
    out, before = io.StringIO(), (dict(os.environ), sys.stdin)
    os.environ |= variables
    sys.stdin = io.StringIO(stdin)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out), quiet():
            try:
                status = main(words[1:])
            except SystemExit as end:
                status = int(end.code or 0)
    finally:
        os.environ.clear()
        os.environ.update(before[0])
        sys.stdin = before[1]
    return status, out.getvalue()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
