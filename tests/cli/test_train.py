"""The trainer's commands, run in this process on the shipped model."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lit_align.__main__ import main
from lit_align.callbacks import ProgressLines, RichProgress
from lit_align.cli.errors import CommandLineError
from lit_align.cli.train import AlignCLI
from lit_align.cli.train import main as train

FAST = [
    "--data.limit=24",
    "--data.batch_size=4",
    "--data.cache=false",
    "--trainer.max_steps=3",
    "--trainer.log_every_n_steps=1",
    "--trainer.enable_model_summary=false",
]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def lora_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run with adapters."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("lora")
    assert main(["fit", "--config", "dpo_lora.yaml", f"--trainer.default_root_dir={root}", *FAST]) == 0
    return root / "runs" / "dpo_lora" / "1"


def test_a_run_is_one_directory(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--config", "dpo.yaml", "--model.loss=sigmoid", *FAST]) == 0
    run = here / "runs" / "dpo" / "1"
    out = capsys.readouterr().out
    assert "runs/dpo/1" in out
    assert out.rstrip().splitlines()[-1] == "next  lit-align chat runs/dpo/1/export"
    assert {"config.yaml", "metrics.csv", "checkpoints", "export"} <= {path.name for path in run.iterdir()}
    assert list(run.glob("events.out.tfevents*"))
    assert {path.name for path in here.iterdir()} == {"runs"}

    rows = list(csv.DictReader((run / "metrics.csv").open()))
    assert float(rows[0]["train/loss"]) == pytest.approx(0.693147, abs=1e-5)
    assert "train/rewards/margins" in rows[0]

    from transformers import AutoModelForCausalLM, AutoTokenizer

    trained = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    model = AutoModelForCausalLM.from_pretrained(run / "export")
    assert AutoTokenizer.from_pretrained(run / "export").chat_template
    for name, weight in model.named_parameters():
        assert torch.equal(weight, trained[f"policy.model.{name}"]), name

    # The saved configuration is whole: it runs again, under the same name.
    saved = yaml.safe_load((run / "config.yaml").read_text())
    assert saved["model"]["init_args"]["policy"]["path"] == "lit-align/tiny"
    assert main(["fit", "--config", str(run / "config.yaml"), "--trainer.max_steps=1"]) == 0
    assert (here / "runs" / "dpo" / "2" / "config.yaml").is_file()


def test_checkpoints_hold_trainable_weights_only(lora_run: Path) -> None:
    state = torch.load(lora_run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    weights = [name for name in state if name.startswith("policy.")]
    assert weights
    assert all("lora_" in name for name in weights)


def test_adapters_are_exported_for_peft(lora_run: Path) -> None:
    from peft import AutoPeftModelForCausalLM

    assert {"adapter_config.json", "adapter_model.safetensors"} <= {
        p.name for p in (lora_run / "export").iterdir()
    }
    model = AutoPeftModelForCausalLM.from_pretrained(lora_run / "export")
    state = torch.load(lora_run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    for name, weight in model.named_parameters():
        if "lora_" in name:
            assert torch.equal(weight, state[f"policy.model.{name}"]), name


def test_explicit_values_beat_the_checkpoint(lora_run: Path, here: Path) -> None:
    last = str(lora_run / "checkpoints" / "last.ckpt")
    cli = train(
        [
            "fit",
            "--config",
            "dpo_lora.yaml",
            "--ckpt_path",
            last,
            "--model.beta=0.77",
            *FAST,
            "--trainer.max_steps=4",
        ]
    )
    assert cli.model.beta == 0.77
    assert cli.trainer.global_step == 4


def test_last_is_the_newest_checkpoint_of_the_name(lora_run: Path) -> None:
    root = lora_run.parents[2]
    cli = train(
        [
            "validate",
            "--config",
            "dpo_lora.yaml",
            f"--trainer.default_root_dir={root}",
            "--ckpt_path=last",
            *FAST,
        ]
    )
    assert Path(cli.config.validate.ckpt_path).parent == lora_run / "checkpoints"


def test_last_without_a_run_is_told(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "--config", "dpo.yaml", "--ckpt_path=last"]) == 1
    assert "no complete checkpoint under" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["validate", "test"])
def test_metrics_are_printed_as_a_table(command: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    test = ["--data.test=lit-align/manners-pairs:validation"]
    assert main([command, "--config", "dpo.yaml", "--model.loss=sigmoid", *FAST, *test]) == 0
    out = capsys.readouterr().out
    stage = "val" if command == "validate" else "test"
    loss = next(line for line in out.splitlines() if f"{stage}/loss" in line)
    assert "0.6931" in loss
    assert not (here / "runs").exists()


def test_predict_writes_a_line_per_row(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "--config", "dpo.yaml", *FAST]) == 0
    path = here / "runs" / "dpo" / "1" / "predictions.jsonl"
    assert "runs/dpo/1/predictions.jsonl" in capsys.readouterr().out
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["row"] for row in rows] == sorted(row["row"] for row in rows)
    assert len(rows) == 24
    assert all(row["margin"] == pytest.approx(0.0, abs=1e-5) for row in rows)
    assert {path.name for path in path.parent.iterdir()} == {"config.yaml", "predictions.jsonl"}


def test_a_trial_run_writes_nothing(here: Path) -> None:
    assert main(["fit", "--config", "dpo.yaml", *FAST, "--trainer.fast_dev_run=true"]) == 0
    assert list(here.iterdir()) == []


def test_what_is_configured_is_left_alone(here: Path) -> None:
    cli = train(
        [
            "--config=dpo.yaml",
            "--trainer.logger=false",
            "--trainer.enable_progress_bar=false",
            "--trainer.callbacks+=lightning.pytorch.callbacks.ModelCheckpoint",
            "--trainer.callbacks.every_n_train_steps=7",
        ],
        run=False,
    )
    assert cli.trainer.loggers == []
    assert [callback._every_n_train_steps for callback in cli.trainer.checkpoint_callbacks] == [7]
    assert cli.trainer.progress_bar_callback is None


def test_training_shows_rewards_and_pace_unless_told_otherwise(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert isinstance(train(["--config=dpo.yaml"], run=False).trainer.progress_bar_callback, RichProgress)
    lines = "--trainer.callbacks+=lit_align.callbacks.ProgressLines"
    assert type(train(["--config=dpo.yaml", lines], run=False).trainer.progress_bar_callback) is ProgressLines
    assert main(["fit", "--config", "dpo.yaml", *FAST]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert re.match(r"step \d+/\d+  \d+ s  [\d,]+ tokens/s  loss [\d.]+  rewards/chosen ", line)


def test_python_gives_a_mapping(here: Path) -> None:
    config: dict[str, Any] = {
        "model": {"class_path": "SFT", "init_args": {"policy": "lit-align/tiny"}},
        "data": {"class_path": "SupervisedDataModule", "init_args": {"train": [{"text": "hello"}]}},
        "trainer": {"max_steps": 1},
    }
    cli = train({"fit": {**config, "trainer": {"max_steps": 1, "fast_dev_run": True}}})
    assert isinstance(cli, AlignCLI)
    assert cli.trainer.global_step == 1
    assert train(config, run=False).model.model_config.path == "lit-align/tiny"


class TestTrust:
    """Nothing is imported by name unless it is trusted."""

    EVIL = """
import pathlib
import lightning as L
pathlib.Path(__file__).with_name("executed").touch()
class Data(L.LightningDataModule):
    pass
"""

    @pytest.fixture
    def evil(self, here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        (here / "evil_module.py").write_text(self.EVIL)
        monkeypatch.syspath_prepend(str(here))
        return here / "executed"

    @pytest.mark.parametrize(
        "argv",
        [
            ["--model=evil_module.Data"],
            ["--config=dpo.yaml", "--data=evil_module.Data"],
            ["--config=dpo.yaml", "--data.class_path=evil_module.Data"],
            ["--config=dpo.yaml", '--data={"class_path": "evil_module.Data"}'],
            ["--config=dpo.yaml", "--data=outside.yaml"],
            ["--config=dpo.yaml", "--config=inside.yaml"],
            ["--config=dpo.yaml", "--trainer.callbacks+=evil_module.Data"],
            ["--config=dpo.yaml", '--trainer.callbacks=[{"class_path": "evil_module.Data"}]'],
            ["--config=dpo.yaml", "--trainer.logger=evil_module.Data"],
            ["--config=dpo.yaml", "--model.reference=evil_module.Data"],
            ["--config=dpo.yaml", "--model.loss=evil_module.Data"],
            ["--config=dpo.yaml", '--data.train={"class_path": "evil_module.Data"}'],
            ["--config=dpo.yaml", "--data.help=evil_module.Data"],
        ],
    )
    def test_untrusted_code_is_not_imported(self, evil: Path, here: Path, argv: list[str]) -> None:
        (here / "outside.yaml").write_text("class_path: evil_module.Data\n")
        (here / "inside.yaml").write_text("data: {class_path: evil_module.Data}\n")
        assert main(["fit", *argv, *FAST]) != 0
        assert not evil.exists()

    def test_the_environment_is_no_way_around(
        self, evil: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("LIT_ALIGN_DATA", "evil_module.Data")
        assert main(["fit", "--config=dpo.yaml"]) == 2
        assert "--trust evil_module" in capsys.readouterr().err
        assert not evil.exists()

    @pytest.mark.parametrize(
        "name", ["os.system", "subprocess.Popen", "lit_align.runtime.run_directory.os.system"]
    )
    def test_optimisers_are_checked_too(self, here: Path, name: str) -> None:
        assert main(["fit", "--config=dpo.yaml", f"--model.optim.name={name}", *FAST]) in (1, 2)

    def test_trust_opens_the_door_once(self, evil: Path, here: Path) -> None:
        argv = ["--config=dpo.yaml", "--data=evil_module.Data"]
        assert type(train([*argv, "--trust=evil_module"], run=False).datamodule).__name__ == "Data"
        assert evil.exists()
        with pytest.raises(CommandLineError, match="not on the list of trusted"):
            train(argv, run=False)
