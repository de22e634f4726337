"""Each recipe in miniature, over gloo: as it stands, but for a small model, few rows and two processes."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from lit_align.cli.recipes import shipped
from lit_align.shipped import find

RECIPES = sorted(name for name in shipped() if name.startswith("recipes/"))
DATA = {"SupervisedDataModule": "lit-align/manners-sft", "PreferenceDataModule": "lit-align/manners-pairs"}
#: What a recipe has for its size; all else is as it stands there.
SMALL = {
    "model.policy.path": "lit-align/tiny",
    "data.limit": "64",
    "trainer.accelerator": "cpu",
    "trainer.devices": "2",
    "trainer.num_nodes": "1",
    "trainer.max_steps": "2",
    "trainer.log_every_n_steps": "1",
    "trainer.enable_model_summary": "false",
}


def fit(folder: Path, name: str, **more: str) -> None:
    content = yaml.safe_load(shipped()[name].read_text())
    options = {**SMALL, "data.train": DATA[content["data"]["class_path"].rpartition(".")[2]]}
    if "quantization" in content["model"]["init_args"]["policy"]:
        pytest.importorskip("bitsandbytes", reason="quantised weights need bitsandbytes")
    if str(content["trainer"]["strategy"]).startswith("zero"):
        pytest.importorskip("deepspeed", reason="ZeRO is DeepSpeed's: pip install 'lit-align[deepspeed]'")
    if isinstance(content["trainer"]["strategy"], dict):
        options["trainer.strategy.tensor_parallel_size"] = "2"
    if more.get("trainer.strategy"):
        del options["trainer.strategy.tensor_parallel_size"]
    env = {
        k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "LOCAL_RANK", "WORLD", "MASTER"))
    }
    command = [sys.executable, "-m", "lit_align", "fit", "--config", name]
    done = subprocess.run(
        command + [f"--{key}={value}" for key, value in (options | more).items()],
        cwd=folder,
        env=env | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_runs_in_miniature(name: str, tmp_path: Path) -> None:
    fit(tmp_path, name)
    run = tmp_path / "runs" / Path(name).stem / "1"
    with (run / "metrics.csv").open() as file:
        losses = [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert len(losses) == 2
    assert all(0 < loss < 20 for loss in losses)
    assert (run / "checkpoints/last.ckpt").exists()
    (exported,) = (run / "export").glob("*.safetensors")
    weights = load_file(exported)
    if exported.name == "model.safetensors":
        before = load_file(find("lit-align/tiny") / "model.safetensors")
        assert before.keys() == weights.keys()
        assert not all(torch.equal(weights[key], before[key]) for key in before)
    else:
        # The second matrices of adapters begin as zeros.
        assert any(bool(value.any()) for key, value in weights.items() if "lora_B" in key)


@pytest.mark.slow
def test_a_run_with_split_products_goes_on_alone(tmp_path: Path) -> None:
    name = "recipes/sft_70b_tensor_parallel.yaml"
    fit(tmp_path, name)
    run = tmp_path / "runs" / Path(name).stem
    assert (run / "1/checkpoints/last.ckpt/index.json").is_file()
    more = {"trainer.strategy": "auto", "trainer.devices": "1", "trainer.max_steps": "4", "ckpt_path": "last"}
    fit(tmp_path, name, **more)
    with (run / "2/metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    assert len(rows) == 2
    assert (run / "2/checkpoints/last.ckpt").is_file()
