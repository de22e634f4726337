"""Every shipped configuration: short, whole, and running as it is."""

from pathlib import Path

import pytest
import torch
import yaml

from lit_align.__main__ import main
from lit_align.cli.recipes import shipped

# Those for real models cannot run here; they are parsed all the same.
OWN = sorted(name for name in shipped() if "/" not in name)


@pytest.mark.parametrize("name", sorted(shipped()))
def test_print_config_round_trips(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--config", name, "--print_config"]) == 0
    printed = capsys.readouterr().out
    (tmp_path / "again.yaml").write_text(printed)
    assert main(["fit", "--config", str(tmp_path / "again.yaml"), "--print_config"]) == 0
    assert capsys.readouterr().out == printed


@pytest.mark.parametrize("name", sorted(shipped()))
def test_first_comment_is_the_command(name: str) -> None:
    first = shipped()[name].read_text().splitlines()[0]
    assert first.startswith(f"# lit-align fit --config {name}:")


@pytest.mark.parametrize("name", OWN)
def test_only_what_differs_and_whole_names(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    content = yaml.safe_load(shipped()[name].read_text())
    for part in ("model", "data"):
        assert content[part]["class_path"].startswith("lit_align.")
    assert main(["fit", "--model", content["model"]["class_path"], "--model.policy", "x",
                 "--data", content["data"]["class_path"], "--print_config"]) == 0  # fmt: skip
    defaults = yaml.safe_load(capsys.readouterr().out)
    for part in ("model", "data"):
        for key, value in content[part]["init_args"].items():
            assert defaults[part]["init_args"][key] != value, f"{part}.{key} says what is the default anyway"
    for key, value in content["trainer"].items():
        assert defaults["trainer"][key] != value, f"trainer.{key} says what is the default anyway"


@pytest.mark.parametrize("name", OWN)
def test_runs_as_it_is(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    few = [
        "--data.limit=32",
        "--data.cache=false",
        "--trainer.max_steps=2",
        "--trainer.enable_model_summary=false",
    ]
    assert main(["fit", "--config", name, *few]) == 0
    assert (tmp_path / "runs" / Path(name).stem / "1" / "export").is_dir()
