"""Callbacks under two processes, in `fit` and in `validate`, say and write what they do under one."""

import csv
import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file

#: Of metrics of algorithms that sample, as in test_on_policy.py.
SAMPLED = {"rel": 1e-3, "abs": 1e-5}


class Found(NamedTuple):
    """What a run left behind."""

    metrics: dict[str, float]
    samples: list[list[dict[str, Any]]]
    weights: dict[str, dict[str, Any]]
    trained: dict[str, Any]
    #: Of Lightning's CSV logger.
    table: list[dict[str, str]]


def run(
    forked: Any, module: str, strategy: str, processes: int, folder: Path, checkpoint: Path | None = None
) -> Found:
    folder.mkdir()
    arguments = [] if checkpoint is None else [checkpoint]
    forked(
        "callback_runs", processes, folder, strategy, processes, folder / "metrics.json", module, *arguments
    )
    files = [f.read_text(encoding="utf-8").splitlines() for f in sorted(folder.glob("samples*.jsonl"))]
    weights = {str(f.relative_to(folder)): load_file(f) for f in sorted(folder.rglob("*.safetensors"))}
    metrics = json.loads((folder / "metrics.json").read_text())
    samples = [[json.loads(line) for line in lines] for lines in files]
    trained = torch.load(folder / "trained.pt", weights_only=True)
    table = folder / "metrics.csv"
    rows = list(csv.DictReader(table.open(encoding="utf-8"))) if table.exists() else []
    return Found(metrics, samples, weights, trained, rows)


def assert_same(one: Found, other: Found, **tolerance: float) -> None:
    within = {"rel": 1e-4, "abs": 1e-6} | tolerance
    assert other.samples == one.samples
    # A batch of another size rounds a sampler's log-probs in another way; they are no metric of ours.
    unlike = {name for name in one.metrics if "sampling" in name or "extreme" in name}
    assert other.metrics.keys() == one.metrics.keys()
    for name in one.metrics.keys() - unlike:
        assert other.metrics[name] == pytest.approx(one.metrics[name], **within), name
    # Process zero alone writes a table, and no other row comes into it.
    assert [row["step"] for row in other.table] == [row["step"] for row in one.table]
    unlike |= {name for name in one.table[0] if "throughput" in name and not name.endswith("/tokens")}
    for mine, theirs in zip(one.table, other.table, strict=True):
        assert mine.keys() == theirs.keys()
        for name in mine.keys() - unlike:
            numbers = [float(row[name] or "nan") for row in (mine, theirs)]
            assert numbers[1] == pytest.approx(numbers[0], nan_ok=True, **within), name
    assert other.weights.keys() == one.weights.keys()
    for path, tensors in one.weights.items():
        assert tensors.keys() == other.weights[path].keys(), path
        for name, tensor in tensors.items():
            assert float((tensor - other.weights[path][name]).abs().max()) < 1e-5, f"{path} {name}"


@pytest.mark.slow
@pytest.mark.parametrize("module", ["stranger", "stranger_lora", "dpo_lora"])
def test_two_processes_equal_one(module: str, forked: Any, tmp_path: Path) -> None:
    one = run(forked, module, "ddp", 1, tmp_path / "one")
    # Of fit, and of the validate after it: samples, and metrics of every tracker.
    validated, fitted = one.samples
    assert (len(fitted), len(validated)) == (2 * 2 * 5, 2 * 5)
    assert any(s["before"] != s["completion"] for s in fitted)
    trackers = ["train/given", "train/sampled", "train/batch", "val/val_batch", "after/val/val_batch"]
    assert all(one.metrics[f"{name}/k3"] > 0 for name in trackers)
    assert {"export/step_000002", "export/step_000003", "average"} <= {
        str(Path(f).parent) for f in one.weights
    }
    for strategy in ("ddp", "fsdp2"):
        assert_same(one, run(forked, module, strategy, 2, tmp_path / strategy))


@pytest.mark.slow
@pytest.mark.parametrize("module", ["stranger", "dpo_lora"])
def test_two_processes_under_deepspeed_equal_one(module: str, forked: Any, tmp_path: Path) -> None:
    pytest.importorskip("deepspeed", reason="ZeRO is DeepSpeed's: pip install 'lit-align[deepspeed]'")
    one = run(forked, module, "ddp", 1, tmp_path / "one")
    assert_same(one, run(forked, module, "zero2", 2, tmp_path / "zero2"))


@pytest.mark.slow
@pytest.mark.parametrize("module", ["stranger", "dpo_lora", "grpo_lora"])
def test_what_callbacks_keep_goes_on_under_sharding(module: str, forked: Any, tmp_path: Path) -> None:
    """The average of weights, and the reference that follows, out of a sharded checkpoint."""
    for strategy, processes in (("ddp", 1), ("fsdp2", 2)):
        run(forked, module, strategy, processes, tmp_path / f"{strategy}_first")
    resumed = [
        run(
            forked,
            module,
            strategy,
            processes,
            tmp_path / strategy,
            tmp_path / f"{strategy}_first" / "metrics.ckpt",
        )
        for strategy, processes in (("ddp", 1), ("fsdp2", 2))
    ]
    assert "export/step_000006" in {str(Path(f).parent) for f in resumed[0].weights}
    assert_same(*resumed, **SAMPLED if module == "grpo_lora" else {})


@pytest.mark.slow
@pytest.mark.parametrize("module", ["grpo_lora", "ppo"])
def test_algorithms_that_sample(module: str, forked: Any, tmp_path: Path) -> None:
    """All callbacks at once: the same as on one process; and training is the same as without them."""
    one = run(forked, module, "ddp", 1, tmp_path / "one")
    assert [len(samples) for samples in one.samples] == [2 * 5, 2 * 2 * 5]
    trackers = ["train/given", "train/sampled", "train/batch", "val/val_batch", "after/val/val_batch"]
    assert all(one.metrics[f"{name}/k3"] > 0 for name in trackers)
    assert {"val/at_validation", "train/win_rate", "train/throughput/tokens"} <= one.metrics.keys()
    for strategy in ("ddp", "fsdp2"):
        two = run(forked, module, strategy, 2, tmp_path / strategy)
        assert_same(one, two, **SAMPLED)
        lines = [x for x in (tmp_path / strategy / "log.txt").read_text().splitlines() if "tokens/s" in x]
        # One process shows the steps, and the end.
        assert [line.split()[1] for line in lines] == ["1/3", "2/3", "3/3", "3/3"]
        bare = run(forked, f"{module}_bare", strategy, 2, tmp_path / f"{strategy}_bare")
        assert bare.samples == []
        assert bare.trained.keys() == two.trained.keys()
        for name, weight in bare.trained.items():
            assert torch.equal(weight, two.trained[name]), name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "step", "messages", "errors"),
    [
        ("masked", 1, ["all_masked"], ["", ""]),
        ("judge", 2, [], ["FailedElsewhere: process 1 failed while it judged", "OSError: the endpoint"]),
        ("check", 0, [], ["OSError: the endpoint", "FailedElsewhere: process 0 failed while it tried"]),
    ],
)
def test_what_one_process_meets_all_hear_of(
    fault: str, step: int, messages: list[str], errors: list[str], forked: Any, tmp_path: Path
) -> None:
    """Both stop at the same step, and none waits for the other for ever."""
    forked("callback_faults", 2, tmp_path, fault, 2, tmp_path)
    for rank, error in enumerate(errors):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert (found["step"], found["messages"]) == (step, messages)
        assert found["error"].startswith(error)
        assert bool(found["error"]) == bool(error)
