"""Two runs of sharded.py beside each other."""

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file


def assert_equal(one: dict[str, Any], two: dict[str, Any]) -> None:
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-6, abs=1e-6)
    assert one["weights"].keys() == two["weights"].keys()
    for name, weight in one["weights"].items():
        assert float((weight - two["weights"][name]).abs().max()) <= 1e-6, name


def assert_same_exports(one: Path, two: Path) -> None:
    files = sorted(path.name for path in one.glob("*.safetensors"))
    assert files
    for name in files:
        whole, gathered = load_file(one / name), load_file(two / name)
        assert whole.keys() == gathered.keys()
        assert all(float((t - gathered[key]).abs().max()) <= 1e-6 for key, t in whole.items())
