"""Everything that README.md and docs/ tell people to type is typed here.

A page is run from top to bottom in a working directory of its own: each ```bash block line by line, each
```python block in one namespace per page. A ```text block right behind one of them must be what it printed.

An HTML comment before a block, ``<!-- test: A, B -->``, changes how it is run:

    append ARGS       added to each ``lit-align fit`` of the block, to shorten it
    replace OLD NEW   another text for the test: a smaller number, a model that needs no network
    slow              left to the slow tests
    fails             each command must fail
    begins            (before ```text) the output begins so
    exempt: REASON    not run; the reason has to be one of EXEMPT
"""

import gzip
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.doc_pages import EXEMPT, PAGES, ROOT, blocks, python_block, run_bash, run_python


def has_slow_block(page: Path) -> bool:
    return any("slow" in block.marks for block in blocks(page))


def runnable(page: Path) -> bool:
    return any(block.language in ("bash", "python") for block in blocks(page))


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def workplace(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with the files that the pages take for granted, and the project's scripts and examples."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIT_ALIGN_CACHE", str(cache))
    # No page shows a figure that a test would compare, so two batches of each evaluation are enough.
    monkeypatch.setenv("LIT_ALIGN_TRAINER__LIMIT_VAL_BATCHES", "2")
    monkeypatch.setenv("LIT_ALIGN_TRAINER__LIMIT_PREDICT_BATCHES", "2")
    for name in ("examples", "scripts", "benchmarks"):
        (tmp_path / name).symlink_to(ROOT / name)
    pairs = [
        {"prompt": f"Where is order {i}?", "chosen": "On its way, thank you!", "rejected": "Who cares."}
        for i in range(40)
    ]
    questions = [{"question": f"{i} + 1?", "answer": str(i + 1)} for i in range(40)]
    for name, rows in {
        "pairs.jsonl": pairs,
        "questions.jsonl": questions,
        "prompts.jsonl": pairs[:2],
    }.items():
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "faster.yaml").write_text("trainer: {max_steps: 1}\n")
    (tmp_path / "mine.py").write_text(python_block(ROOT / "docs/extending.md", "class Addition"))
    return tmp_path


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(
            page, id=page.relative_to(ROOT).as_posix(), marks=[pytest.mark.slow] * has_slow_block(page)
        )
        for page in PAGES
        if runnable(page)
    ],
)
def test_a_page_runs_as_it_is_written(page: Path, workplace: Path) -> None:
    namespace: dict[str, Any] = {"__name__": "__main__"}
    printed = ""
    for block in blocks(page):
        place = f"{page.name}, line {block.line}"
        body = block.body
        for replacement in block.marks.get("replace", []):
            old, new = replacement.split(" ")
            assert old in body, f"{place}: nothing to replace: {old}"
            body = body.replace(old, new)
        if block.language == "text" and printed:
            wanted = body.strip()
            assert (
                printed.strip().startswith(wanted) if "begins" in block.marks else printed.strip() == wanted
            ), f"{place}: it printed\n{printed}"
        printed = ""
        if "exempt" in block.marks:
            assert block.marks["exempt"][0] in EXEMPT.values(), f"{place}: no such reason"
        elif block.language == "python":
            printed = run_python(body, namespace, place)
        elif block.language == "bash":
            printed = run_bash(body, block.marks, place)


LINK = re.compile(r"(?<!\\)\[[^\]]*\]\((?P<target>[^)\s]+)\)")


@pytest.mark.parametrize("page", [pytest.param(p, id=p.relative_to(ROOT).as_posix()) for p in PAGES])
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in LINK.findall(text):
        path, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), f"{page.name} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", found.read_text(encoding="utf-8"), flags=re.MULTILINE)
            slugs = {
                re.sub(r"[^\w\s-]", "", heading).strip().lower().replace(" ", "-") for heading in headings
            }
            assert anchor in slugs, f"{page.name} links to {target}; there are {sorted(slugs)}"


def test_the_picture_is_small() -> None:
    assert (ROOT / "docs/images/dpo.png").stat().st_size < 100_000


def test_no_exemption_is_idle() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    for beginning in EXEMPT:
        assert re.search(rf"^{re.escape(beginning)}", text, flags=re.MULTILINE), (
            f"nobody writes {beginning!r}"
        )


def test_site(tmp_path: Path) -> None:
    """``mkdocs build --strict``: navigation, links and anchors between pages."""
    pytest.importorskip("mkdocs", reason="pip install -e '.[docs]'")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "mkdocs",
            "build",
            "--strict",
            "--quiet",
            "--site-dir",
            str(tmp_path / "site"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    linked = tmp_path / "site/source/lit_align/losses/dpo.py.txt"
    assert linked.read_text() == (ROOT / "lit_align/losses/dpo.py").read_text()


def test_shipped_row_counts() -> None:
    """The pages say 3,000 pairs and 400 held-out ones."""
    from lit_align.shipped import find

    for name, count in {"lit-align/manners-pairs": 3000, "lit-align/manners-pairs:validation": 400}.items():
        path = find(name)
        assert path is not None
        with gzip.open(path) as file:
            assert sum(1 for _ in file) == count
