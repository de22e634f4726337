"""Callbacks under two processes, in `fit` and in `validate`, say and write what they do under one."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from safetensors.torch import load_file


class Found(NamedTuple):
    """What a run left behind."""

    metrics: dict[str, float]
    samples: list[list[dict[str, Any]]]
    weights: dict[str, dict[str, Any]]


def run(
    forked: Any, module: str, strategy: str, processes: int, folder: Path, checkpoint: Path | None = None
) -> Found:
    folder.mkdir()
    arguments = [] if checkpoint is None else [checkpoint]
    forked("callbacks", processes, folder, strategy, processes, folder / "metrics.json", module, *arguments)
    files = [f.read_text(encoding="utf-8").splitlines() for f in sorted(folder.glob("samples*.jsonl"))]
    weights = {str(f.relative_to(folder)): load_file(f) for f in sorted(folder.rglob("*.safetensors"))}
    metrics = json.loads((folder / "metrics.json").read_text())
    return Found(metrics, [[json.loads(line) for line in lines] for lines in files], weights)


def assert_same(one: Found, other: Found) -> None:
    assert other.samples == one.samples
    assert other.metrics.keys() == one.metrics.keys()
    for name, value in one.metrics.items():
        assert other.metrics[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
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
    assert_same(*resumed)
