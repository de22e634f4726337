"""Configurations, environment and options, in the order in which they count."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_align.__main__ import main
from lit_align.cli.arguments import merge, normalise, prepare


def _printed(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["fit", *argv, "--print_config"]) == 0
    return yaml.safe_load(capsys.readouterr().out)


@pytest.mark.parametrize(
    "argv",
    [
        ("--model.policy", "DIR", "--model.policy.from_scratch", "true"),
        ("--model.policy.from_scratch", "true", "--model.policy", "DIR"),
        ("--model.policy=DIR", "--model.policy.from_scratch=true"),
        ("--model.policy.path", "DIR", "--model.policy.from_scratch", "true"),
        ("--model.init_args.policy", "DIR", "--model.init_args.policy.from_scratch", "true"),
        ("--model.policy", "{path: DIR, from_scratch: true}"),
    ],
)
def test_policy_by_name_and_by_fields(argv: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    policy = _printed(capsys, "--config", "dpo.yaml", *argv)["model"]["init_args"]["policy"]
    assert policy["path"] == "DIR"
    assert policy["from_scratch"] is True


def test_policy_by_name_in_yaml_and_fields_on_the_command_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("model: {class_path: DPO, init_args: {policy: some/name}}\ndata: PreferenceDataModule\n")
    options = (
        "--model.policy.dtype",
        "float32",
        "--model.policy.lora.r",
        "4",
        "--model.policy.quantization.kind",
        "int8",
    )
    policy = _printed(capsys, "--config", str(path), *options)["model"]["init_args"]["policy"]
    assert (policy["path"], policy["dtype"], policy["lora"]["r"]) == ("some/name", "float32", 4)
    assert policy["quantization"]["kind"] == "int8"


def test_reference_is_a_class_with_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    printed = _printed(
        capsys, "--config", "dpo.yaml", "--model.reference", "EMA", "--model.reference.interval", "7"
    )
    reference = printed["model"]["init_args"]["reference"]
    assert reference["class_path"].endswith(".EMA")
    assert reference["init_args"]["interval"] == 7


@pytest.mark.parametrize("place", ["yaml", "options", "neither"])
def test_a_strategy_by_name_takes_arguments(
    place: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("trainer: {strategy: fsdp2}\n" if place == "yaml" else "{}\n")
    named = ["--trainer.strategy", "fsdp2"] if place == "options" else []
    more = [] if place == "neither" else ["--trainer.strategy.tensor_parallel_size", "2"]
    strategy = _printed(capsys, "--config", "sft.yaml", "--config", str(path), *named, *more)["trainer"][
        "strategy"
    ]
    if place == "neither":
        assert strategy == "auto"
        return
    assert strategy["class_path"] == "lit_align.runtime.sharded_strategy.ShardedStrategy"
    assert strategy["init_args"]["tensor_parallel_size"] == 2


@pytest.mark.parametrize(("name", "stage"), [("zero2", 2), ("zero3", 3)])
@pytest.mark.parametrize("place", ["yaml", "options"])
def test_zero_by_name_takes_arguments(
    name: str, stage: int, place: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(f"trainer: {{strategy: {name}}}\n" if place == "yaml" else "{}\n")
    named = ["--trainer.strategy", name] if place == "options" else []
    more = ["--trainer.strategy.timeout", "60"]
    printed = _printed(capsys, "--config", "sft.yaml", "--config", str(path), *named, *more)
    strategy = printed["trainer"]["strategy"]
    assert strategy["class_path"] == "lit_align.runtime.zero_strategy.ZeroStrategy"
    assert (strategy["init_args"]["stage"], strategy["init_args"]["timeout"]) == (stage, 60)


def test_several_configurations_merge_key_by_key(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    over = tmp_path / "over.yaml"
    over.write_text("model: {init_args: {beta: 0.7, policy: {lora: {r: 4}}}}\ntrainer: {max_steps: 5}\n")
    printed = _printed(capsys, "--config", "dpo.yaml", "--config", str(over))
    plain = _printed(capsys, "--config", "dpo.yaml")
    init = printed["model"]["init_args"]
    assert (init["beta"], init["policy"]["lora"]["r"], init["policy"]["path"]) == (0.7, 4, "lit-align/tiny")
    assert init["lr"] == plain["model"]["init_args"]["lr"]
    assert printed["trainer"]["max_steps"] == 5
    assert printed["trainer"]["log_every_n_steps"] == plain["trainer"]["log_every_n_steps"]


def test_options_beat_files_wherever_they_stand(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (
        ("--trainer.max_steps", "3", "--config", "dpo.yaml"),
        ("--config", "dpo.yaml", "--trainer.max_steps", "3"),
    ):
        assert _printed(capsys, *argv)["trainer"]["max_steps"] == 3


def test_environment_beats_files_and_options_beat_the_environment(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIT_ALIGN_CONFIG", "dpo.yaml")
    monkeypatch.setenv("LIT_ALIGN_TRAINER__MAX_STEPS", "11")
    monkeypatch.setenv("LIT_ALIGN_MODEL__LR", "0.25")
    monkeypatch.setenv("LIT_ALIGN_FIT__MODEL__LR", "0.5")
    monkeypatch.setenv("LIT_ALIGN_VALIDATE__MODEL__LR", "0.75")
    printed = _printed(capsys)
    assert printed["trainer"]["max_steps"] == 11
    assert printed["model"]["init_args"]["lr"] == 0.5
    assert _printed(capsys, "--trainer.max_steps", "12")["trainer"]["max_steps"] == 12


def test_a_file_here_goes_before_the_shipped_one(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert _printed(capsys, "--config", "dpo.yaml")["trainer"]["max_steps"] != 77
    Path("dpo.yaml").write_text(
        "model: {class_path: DPO, init_args: {policy: x}}\n"
        "data: PreferenceDataModule\n"
        "trainer: {max_steps: 77}\n"
    )
    assert _printed(capsys, "--config", "dpo.yaml")["trainer"]["max_steps"] == 77


def test_small_numbers_are_numbers(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("model: {init_args: {lr: 1e-6}}\n")
    assert prepare("fit", ["--config", str(path)], {}).config["model"]["init_args"]["lr"] == 1e-6


def test_merge_replaces_an_object_of_another_class() -> None:
    base = {"model": {"class_path": "DPO", "init_args": {"beta": 1}}}
    over = {"model": {"class_path": "SFT", "init_args": {"lr": 2}}}
    assert merge(base, over) == over
    assert merge(base, {"model": {"init_args": {"lr": 2}}})["model"]["init_args"] == {"beta": 1, "lr": 2}


def test_normalise_leaves_descriptions_alone() -> None:
    config = {"model": {"class_path": "DPO", "init_args": {"policy": {"path": "x"}}}}
    assert normalise(config) == config
    assert normalise({"trainer": {}}) == {"trainer": {}}


@pytest.mark.parametrize(
    ("given", "wanted"),
    [("shared", "shared"), ("adapter", "adapter"), ("some/model", {"path": "some/model"})],
)
def test_a_critic_is_a_word_or_a_model(given: str, wanted: object) -> None:
    assert normalise({"model": {"critic": given}}) == {"model": {"critic": wanted}}
    (option,) = prepare("fit", ["--model.critic", given], {}).options
    assert option == (
        "--model.critic.path=some/model" if given == "some/model" else f"--model.critic={given}"
    )
