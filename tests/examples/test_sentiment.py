"""The sentiment example, on a few reviews of the test's own and for a few steps."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "sentiment" / "run.py"
GOOD = ("warm", "funny", "moving", "bright", "clever")
BAD = ("dull", "silly", "slow", "flat", "tired")


def review(random: random.Random) -> dict[str, object]:
    label = random.randrange(2)
    first, second = random.sample(GOOD if label else BAD, 2)
    # The prompt is the first six tokens, before anything is said.
    return {"text": f"the film that i saw yesterday was {first} and {second} .", "label": label}


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "LIT_ALIGN_CACHE": str(Path.cwd() / "cache")},
        timeout=300,
    )


@pytest.mark.slow
def test_continuations_become_positive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    generator = random.Random(0)
    rows = [review(generator) for _ in range(500)]
    (tmp_path / "reviews.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = run(
        "--data", tmp_path / "reviews.jsonl", "--work", tmp_path / "work", "--epochs", 8, "--steps", 60
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    line = next(line for line in lines if line.startswith("BERT, mean probability"))
    before, after = map(float, line.split()[-2:])
    assert after > before + 0.2, done.stdout
    line = next(line for line in lines if line.startswith("word counts (no reward)"))
    before, after = map(float, line.split()[-2:])
    assert after > before + 0.2, done.stdout
    assert (tmp_path / "work" / "sentiment.png").stat().st_size > 1000


def test_without_reviews_it_says_where_to_get_some() -> None:
    done = run()
    assert done.returncode == 1
    assert "give --data FILE" in done.stderr
    assert "rotten_tomatoes" in done.stderr


def test_the_configuration_for_the_hub_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lit_align.cli.train import main

    monkeypatch.chdir(tmp_path)
    config = SCRIPT.with_name("ppo.yaml")
    cli = main(
        ["--config", str(config), "--trainer.fast_dev_run=true", "--trainer.accelerator=cpu"], run=False
    )
    (reward,) = cli.model.rewards.configs
    assert (reward.kind, reward.shown_name, reward.options["label"]) == (
        "classifier",
        "sentiment",
        "POSITIVE",
    )
    assert cli.model.steps_per_rollout == 4
    assert cli.datamodule.tokens.truncation == "keep_start"
