"""The comparison with TRL: what it counts, when it says that parity fails, and our side of it."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    monkeypatch.syspath_prepend(str(FOLDER))
    return {name: importlib.import_module(name) for name in ("workloads", "compare", "gpu")}


def result(losses: list[float], **more: float) -> dict:
    return {"losses": losses, "cpu": 2.0, "wall": 4.0, "grown": 300.0, "peak": 900.0, "tokens": 100} | more


def test_rows_are_the_same_every_time_and_within_their_limits(modules):
    rows = modules["workloads"].rows("small", 40)
    assert rows == modules["workloads"].rows("small", 40)
    assert all(20 <= len(r["prompt"]) <= 200 and 21 <= len(r["chosen"]) <= 201 for r in rows)
    assert all(r["chosen"][-1] == r["rejected"][-1] == modules["workloads"].END for r in rows)
    assert max(max(r["prompt"]) for r in rows) < 4096


def test_grouped_batches_hold_the_same_rows_with_less_padding(modules):
    plain, grouped = (modules["workloads"].rows("small", 64, n) for n in (0, 8))
    assert sorted(map(str, plain)) == sorted(map(str, grouped))

    def padding(rows):
        batches = [rows[i : i + 8] for i in range(0, 64, 8)]
        lengths = [[len(r["prompt"]) + len(r["chosen"]) for r in batch] for batch in batches]
        return sum(8 * max(batch) for batch in lengths) / sum(map(sum, lengths))

    assert padding(grouped) < padding(plain)


def test_counts_by_hand(modules):
    """Prompt 2, chosen 3, rejected 4: 5 tokens supervised, 5 + 6 as a pair, 2 + 3 + 4 with the prompt once.

    tiny: a block has 32 * 16 * (2 * 2 + 2 * 1) + 3 * 32 * 64 = 9216 weights, the head 512 * 32 = 16384.
    """
    w = modules["workloads"]
    rows = [{"prompt": [3, 4], "chosen": [5, 6, 1], "rejected": [5, 6, 7, 1]}]
    assert w.useful_tokens(rows, pairs=False) == 5
    assert w.useful_tokens(rows, pairs=True) == 11
    assert w.floor_flops("tiny", rows, "sft") == 6 * 9216 * 5 + 6 * 16384 * 3
    assert w.floor_flops("tiny", rows, "reward") == 6 * 9216 * 9
    assert w.floor_flops("tiny", rows, "dpo") == 8 * 9216 * 9 + 8 * 16384 * 7
    assert w.floor_flops("tiny", rows, "dpo_lora") == 6 * 9216 * 9 + 6 * 16384 * 7


def test_losses_that_differ_fail(modules):
    compare = modules["compare"]
    row = compare.Row("sft", "small", 8, 2)
    assert compare.parity(row, [(result([1.0, 2.0]), result([1.0, 2.00001]))])[0]
    assert not compare.parity(row, [(result([1.0, 2.0]), result([1.0, 2.0001]))])[0]
    assert not compare.parity(row, [(result([1.0, 2.0]), result([1.0]))])[0]
    assert not compare.parity(row, [(result([float("nan")]), result([float("nan")]))])[0]
    assert compare.parity(row._replace(both=("--bf16",)), [(result([8.0]), result([8.1]))])[0]
    line = compare.line(row, [(result([1.0]), result([2.0], floor=1.0, rate=1.0))])
    assert "PARITY FAILS (1e+00)" in line


def test_ratios_are_taken_inside_a_pair(modules):
    """CPU 6 / 2 = 3 and 2 / 1 = 2: the median is 2.5. One second of products is 1 / 2 and 1 / 1 of ours."""
    compare = modules["compare"]
    row = compare.Row("sft", "small", 8, 1)
    pairs = [
        (result([1.0], cpu=6.0), result([1.0], cpu=2.0, floor=100.0, rate=100.0)),
        (result([1.0], cpu=2.0), result([1.0], cpu=1.0, floor=100.0, rate=100.0)),
    ]
    cells = [cell.strip() for cell in compare.line(row, pairs).split("|")]
    assert cells[3] == "2.50x (2.00-3.00)"
    assert cells[9] == "75%"  # the median of 1 / 2 and 1 / 1
    assert cells[10] == "equal to 0e+00"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(FOLDER.parent)}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment, check=False
    )


@pytest.mark.slow
@pytest.mark.parametrize("workload", ["sft", "dpo", "dpo_cached", "dpo_lora", "reward", "overhead"])
def test_our_side_runs(workload):
    done = run(
        str(FOLDER / "ours.py"), workload, "--shape", "tiny", "--steps", "2", "--rows", "2", "--micro", "90"
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.split("RESULT ")[1])
    assert len(found["losses"]) == 2
    if workload.startswith("dpo"):
        assert found["losses"][0] == pytest.approx(0.693147, abs=1e-5)
    assert found["tokens"] > 0
    assert found["floor"] > 0


@pytest.mark.slow
def test_the_gpu_benchmark_says_that_it_measured_none():
    done = run(
        str(FOLDER / "gpu.py"),
        "--device",
        "cpu",
        "--shape",
        "tiny",
        "--only",
        "sft",
        "--steps",
        "3",
        "--pairs",
        "1",
    )
    assert done.returncode == 0, done.stderr
    assert "Nothing was measured on a GPU" in done.stdout
    assert "| sft | tiny, 16 | lit-align |" in done.stdout


def test_no_gpu_is_an_error_that_says_what_to_do(modules, monkeypatch, capsys):
    monkeypatch.setattr(modules["gpu"].torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        modules["gpu"].main([])
    assert "--device cpu --shape tiny" in capsys.readouterr().err
