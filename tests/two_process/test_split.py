"""Data, callbacks and exact resume where processes share products: rows count once, and are written once."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file


def fit(forked, folder: Path, kind: str, processes: int, steps: int = 4, checkpoint: Path | None = None):
    folder.mkdir()
    forked(
        "split", processes, folder, kind, processes, steps, folder, *[checkpoint][: checkpoint is not None]
    )
    (exported,) = (folder / "export").glob("*.safetensors")
    return json.loads((folder / "metrics.json").read_text()), load_file(exported)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_callbacks_and_metrics_are_those_of_one_process(forked, kind, processes, tmp_path):
    steps, weights = fit(forked, tmp_path / "one", kind, 1)
    split_steps, split_weights = fit(forked, tmp_path / "split", kind, processes)
    assert len(steps) == 4
    assert {"train/num_tokens", "train/throughput/tokens", "val/loss"} <= steps[-1].keys()
    for mine, other in zip(steps, split_steps, strict=True):
        assert mine.keys() == other.keys()
        for name, value in mine.items():
            assert other[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
    assert weights.keys() == split_weights.keys()
    assert all(float((t - split_weights[name]).abs().max()) <= 1e-6 for name, t in weights.items())
    written = sorted(p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*.jsonl"))
    assert len(written) >= 2
    for path in written:
        assert (tmp_path / "one" / path).read_text() == (tmp_path / "split" / path).read_text()
    rows = [json.loads(line)["row"] for line in (tmp_path / "one/predictions.jsonl").read_text().splitlines()]
    assert len(set(rows)) == len(rows) == 32


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_a_run_that_goes_on_is_the_same_to_the_bit(forked, processes, tmp_path):
    _, whole = fit(forked, tmp_path / "whole", "full", processes)
    fit(forked, tmp_path / "first", "full", processes, steps=3)
    _, rest = fit(forked, tmp_path / "rest", "full", processes, checkpoint=tmp_path / "first/end.ckpt")
    assert all(torch.equal(t, rest[name]) for name, t in whole.items())
