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

import contextlib
import gzip
import io
import json
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

import pytest

from lit_align.__main__ import main
from lit_align.cli.names import OURS
from lit_align.losses.preference import DIVERGENCES, PREFERENCE_LOSSES

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


def python_block(page: Path, contains: str) -> str:
    return next(b.body for b in blocks(page) if b.language == "python" and contains in b.body).split(
        "\ntrainer = "
    )[0]


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


#: The page of each algorithm.
ALGORITHMS = {
    "SFT": "sft",
    "RewardModel": "reward",
    "DPO": "dpo",
    "PPO": "ppo",
    "A2C": "a2c",
    "GRPO": "grpo",
    "RLOO": "rloo",
    "ReinforcePP": "reinforce_pp",
}


def test_every_algorithm_has_a_page() -> None:
    import importlib
    import inspect

    from lit_align.algorithms.base import AlignModule

    found = {}
    for path in (ROOT / "lit_align/algorithms").glob("*.py"):
        module = importlib.import_module(f"lit_align.algorithms.{path.stem}")
        for name, value in vars(module).items():
            own = inspect.isclass(value) and value.__module__ == module.__name__
            if own and issubclass(value, AlignModule) and not inspect.isabstract(value):
                found[name] = path.stem
    # What PPO and A2C share can be built, but is described on their pages.
    found.pop("ActorCriticModule")
    assert found == ALGORITHMS
    pages = {path.stem for path in (ROOT / "docs/algorithms").glob("*.md")}
    assert pages == {*ALGORITHMS.values(), "on_policy"}


@pytest.mark.parametrize(("algorithm", "name"), ALGORITHMS.items())
def test_an_algorithm_s_page_has_every_argument(algorithm: str, name: str) -> None:
    import inspect
    from dataclasses import fields

    import lit_align
    from lit_align.algorithms.shaping import KLPenalty, ScoreShaping

    page = (ROOT / f"docs/algorithms/{name}.md").read_text(encoding="utf-8")
    table = page[page.index("## Configuration") : page.index("## Metrics")]
    arguments = set(inspect.signature(getattr(lit_align, algorithm).__init__).parameters) - {"self"}
    if algorithm == "PPO":
        arguments = arguments - {"kl", "scores"} | {f"kl.{field.name}" for field in fields(KLPenalty)}
        arguments |= {f"scores.{field.name}" for field in fields(ScoreShaping)}
    for argument in arguments:
        assert f"`{argument}`" in table, f"{name}.md lacks {argument}"


def test_every_policy_loss_and_advantage_has_a_page() -> None:
    from lit_align.functional.advantages import ADVANTAGE_ESTIMATORS
    from lit_align.losses.policy import POLICY_LOSSES

    text = (ROOT / "docs/algorithms/grpo.md").read_text(encoding="utf-8")
    for name in set(POLICY_LOSSES) - {"ppo", "a2c", "rloo", "reinforce_pp"}:
        assert f"| `{name}`" in text, f"grpo.md lacks the loss {name}"
    for name in set(ADVANTAGE_ESTIMATORS) - {"gae", "reinforce_pp"}:
        assert f"`{name}`" in text, f"grpo.md lacks the advantages {name}"


def test_every_loss_and_divergence_is_in_the_table() -> None:
    page = (ROOT / "docs/losses.md").read_text(encoding="utf-8")
    for name, loss in PREFERENCE_LOSSES.items():
        (row,) = [line for line in page.splitlines() if line.startswith(f"| `{name}` |")]
        *_, divergences, couples, _ = (cell.strip() for cell in row.split("|"))
        assert divergences.startswith("yes" if loss.allows_divergence else "no"), name
        assert couples == ("**yes**" if loss.couples_batch else "no"), name
    for name in DIVERGENCES:
        assert f"| `{name}`" in page


ON_POLICY = ["ppo.yaml", "a2c.yaml", "grpo.yaml", "rloo.yaml", "reinforce_pp.yaml"]


@pytest.mark.parametrize("config", ["sft.yaml", "reward.yaml", "dpo.yaml", *ON_POLICY])
def test_every_metric_of_a_run_is_in_the_table(config: str, workplace: Path) -> None:
    status, text = run_command(
        f"lit-align fit --config {config} --trainer.max_steps 2 --trainer.log_every_n_steps 1 "
        "--data.limit 64 --trainer.val_check_interval 2 --trainer.limit_val_batches 1"
    )
    assert status == 0, text
    (found,) = workplace.glob("runs/*/1/metrics.csv")
    names = set(found.read_text().splitlines()[0].split(",")) - {"epoch", "step"}
    assert any(name.startswith("val/") for name in names), names
    assert any(name.startswith("train/") for name in names), names
    sections = {"sft.yaml": "## SFT", "reward.yaml": "## RewardModel", "dpo.yaml": "## DPO"}
    section = sections.get(config, "## On-policy")
    page = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
    start = page.index(section)
    tables = (
        page[page.index("## All algorithms") : page.index("## SFT")]
        + page[start : page.index("\n## ", start + 1)]
        + page[page.index("## Rewards") : page.index("## Columns")]
    )
    for name in names:
        bare = re.sub(r"^rewards/(polite|numeric_answer)/", "rewards/NAME/", name.partition("/")[2])
        assert f"`{bare}`" in tables, f"docs/metrics.md lacks {bare}"


def test_every_name_of_trl_is_in_the_table() -> None:
    page = (ROOT / "docs/cli.md").read_text(encoding="utf-8").replace("`", "")
    for theirs, ours in OURS.items():
        assert f"| {theirs} | {ours} |" in page


def test_the_names_we_answer_with_exist() -> None:
    """An answer that names an option which does not exist would be worse than none."""
    import inspect
    from dataclasses import fields

    import lightning as L

    import lit_align
    from lit_align import LoraConfig, ModelConfig, QuantizationConfig
    from lit_align.algorithms.optim import OptimConfig
    from lit_align.algorithms.shaping import KLPenalty, ScoreShaping
    from lit_align.datamodules import PreferenceDataModule, PromptDataModule, SupervisedDataModule
    from lit_align.models.value_head import ValueHeadConfig
    from lit_align.rollouts.correction import SamplerCorrection
    from lit_align.rollouts.reward_config import RewardConfig
    from lit_align.rollouts.sampling import Sampling
    from lit_align.rollouts.server import ServerGenerator
    from lit_align.scoring.references import EMA, FromPath, NamedAdapter, SharedLayers

    def arguments(*classes: type) -> set[str]:
        return {name for cls in classes for name in inspect.signature(cls.__init__).parameters}  # type: ignore[misc]

    known = {
        "trainer": arguments(L.Trainer),
        "data": arguments(PreferenceDataModule, PromptDataModule, SupervisedDataModule),
        "model": arguments(*(getattr(lit_align, name) for name in ALGORITHMS)),
        "model.sampling": {f.name for f in fields(Sampling)},
        "model.correction": {f.name for f in fields(SamplerCorrection)},
        "model.kl": {f.name for f in fields(KLPenalty)},
        "model.scores": {f.name for f in fields(ScoreShaping)},
        "model.value_head": {f.name for f in fields(ValueHeadConfig)},
        "model.policy": {f.name for f in fields(ModelConfig)},
        "model.policy.lora": {f.name for f in fields(LoraConfig)},
        "model.policy.quantization": {f.name for f in fields(QuantizationConfig)},
        "model.optim": {f.name for f in fields(OptimConfig)},
        "model.reference": arguments(EMA, FromPath, NamedAdapter, SharedLayers),
        "model.rewards": {f.name for f in fields(RewardConfig)},
        "model.generator": arguments(ServerGenerator),
    }
    for theirs, ours in OURS.items():
        for group, name in re.findall(r"--([a-z_.]+)\.([a-z_]+)", ours):
            assert name in known[group], f"{theirs} is answered with --{group}.{name}"


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
