"""ExportHF writes, of anyone's module and under every strategy, what it writes in one process."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

STRATEGIES = ["ddp", "fsdp1", "fsdp1_layers", "zero2", "zero3"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["stranger", "stranger_tied", "stranger_lora"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_directory_of_one_process(strategy: str, kind: str, forked: Any, tmp_path: Path) -> None:
    if strategy.startswith("zero") and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("ZeRO is DeepSpeed's: pip install 'lit-align[deepspeed]'")
    forked("exports", 1, tmp_path, "auto", 1, tmp_path / "one", kind)
    forked("exports", 2, tmp_path, strategy, 2, tmp_path / "two", kind)
    found = [
        {str(file.relative_to(tmp_path / run)): file for file in (tmp_path / run).rglob("*.safetensors")}
        for run in ("one", "two")
    ]
    name = "adapter_model" if kind == "stranger_lora" else "model"
    assert sorted(found[0]) == [f"step_{step:06d}/{name}.safetensors" for step in (1, 2)]
    assert found[1].keys() == found[0].keys()
    for path, file in found[0].items():
        one, two = load_file(file), load_file(found[1][path])
        assert two.keys() == one.keys()
        assert all(float((tensor - two[key]).abs().max()) <= 1e-5 for key, tensor in one.items())
    first, second = (load_file(found[0][path]) for path in sorted(found[0]))
    assert any(float((tensor - second[key]).abs().max()) > 1e-3 for key, tensor in first.items())
