"""Mistakes on the command line are told in two lines, with the nearest name, and status 2."""

from pathlib import Path

import pytest

from lit_align.__main__ import main


@pytest.fixture
def complaint(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)

    def run(*argv: str, status: int = 2) -> str:
        assert main(list(argv)) == status
        error = capsys.readouterr().err
        lines = [line for line in error.splitlines() if line]
        assert len(lines) == 2, error
        assert lines[0].startswith("error: ")
        assert "usage" not in error
        return error

    return run


REWARDED = ("fit", "--config", "ppo.yaml")
DPO = ("fit", "--model", "DPO", "--model.policy", "x", "--data", "PreferenceDataModule")


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (("fit", "--trainer.max_stps", "3"), ["trainer.max_stps", "--trainer.max_steps"]),
        ((*DPO, "--model.betta", "3"), ["DPO has no argument 'betta'", "'beta'"]),
        (
            (*DPO, "--data.batchsize", "3"),
            ["PreferenceDataModule has no argument 'batchsize'", "'batch_size'"],
        ),
        ((*DPO, "--model.policy.dtyp", "x"), ["'dtyp'", "'dtype'"]),
        ((*DPO, "--model.policy.lora.alfa", "3"), ["LoraConfig has no argument 'alfa'", "'alpha'"]),
        ((*DPO, "--model.optim.wight_decay", "3"), ["'wight_decay'", "'weight_decay'"]),
        (("fit", "--model", "DPOO"), ["no class 'DPOO'", "DPO"]),
        (("fit", "--model", "lit_align.algorithms.dpo.DPOO"), ["DPOO", "did you mean DPO"]),
        ((*DPO, "--model.reference", "EMAA"), ["'EMAA'", "EMA"]),
        (("fit", "--model", "DPO", "--data", "PreferencDataModule"), ["did you mean PreferenceDataModule"]),
        (("fit", "--trainer.max_steps", "many"), ["trainer.max_steps", "'many'", "int"]),
        ((*DPO, "--model.beta", "strong"), ["model.beta", "'strong'", "float"]),
        ((*REWARDED, "--model.rewards", "os.system"), ["names 'os.system'", "add '--trust os'"]),
        ((*REWARDED, "--model.rewards", "polte"), ["no reward function 'polte'", "did you mean 'polite'"]),
        ((*REWARDED, "--model.rewards", '{"functon": "polite"}'), ["no argument 'functon'", "'function'"]),
        (("fit",), ["model", "recipes"]),
        (("fit", "--config", "rewad.yaml"), ["rewad.yaml", "did you mean reward.yaml"]),
        (("fit", "--config", "dpo.yaml", "--config"), ["--config has no value"]),
        (("generate", "lit-align/tiny"), ["--prompt"]),
        (("generate", "lit-align/tiny", "--promt", "x"), ["--promt", "--prompt"]),
        (("generate", "lit-align/tiny", "--prompt", "x", "--top_k", "few"), ["top_k"]),
        (("export", "nowhere"), ["nowhere", "no such"]),
    ],
)
def test_mistakes(complaint, argv: tuple[str, ...], expected: list[str]) -> None:
    error = complaint(*argv)
    for text in expected:
        assert text in error


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("per_device_train_batch_size", "--data.batch_size"),
        ("gradient_accumulation_steps", "--trainer.accumulate_grad_batches"),
        ("model_name_or_path", "--model.policy NAME"),
        ("max_seq_length", "--data.max_length"),
        ("num_train_epochs", "--trainer.max_epochs"),
        ("learning_rate", "--model.lr"),
        ("output_dir", "--trainer.default_root_dir"),
        ("bf16", "--trainer.precision"),
        ("ref_model", "--model.reference"),
        ("loss_type", "--model.loss"),
        ("lora_r", "--model.policy.lora.r"),
        ("load_in_4bit", "--model.policy.quantization.kind nf4"),
    ],
)
def test_names_of_trl_are_answered_with_ours(complaint, tmp_path: Path, name: str, ours: str) -> None:
    assert ours in complaint("fit", f"--{name}", "1")
    (tmp_path / "mine.yaml").write_text(f"model: {{class_path: DPO, init_args: {{policy: x, {name}: 1}}}}")
    error = complaint("fit", "--config", "mine.yaml", "--data", "PreferenceDataModule")
    assert ours in error
    assert "(in mine.yaml)" in error


@pytest.mark.parametrize("content", ["learning_rate: 1", "trainer: {learning_rate: 1}"])
def test_names_of_trl_are_found_anywhere(complaint, tmp_path: Path, content: str) -> None:
    (tmp_path / "mine.yaml").write_text(content)
    error = complaint("fit", "--config", "dpo.yaml", "--config", "mine.yaml")
    assert "--model.lr" in error
    assert "(in mine.yaml)" in error


def test_the_file_that_holds_the_mistake_is_named(complaint, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("model:\n  init_args:\n    betta: 1\n")
    error = complaint("fit", "--config", "dpo.yaml", "--config", "mine.yaml")
    assert "(in mine.yaml)" in error


def test_broken_yaml_is_placed(complaint, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("trainer:\n  max_steps: [1\n")
    assert "mine.yaml line 3" in complaint("fit", "--config", "mine.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    assert "a configuration is a mapping" in complaint("fit", "--config", "list.yaml")


def test_what_a_constructor_refuses_is_told_alone(complaint) -> None:
    error = complaint(*DPO, "--model.loss", "sgmoid")
    assert "unknown preference loss 'sgmoid'" in error
    assert "did you mean 'sigmoid'" in error
    assert "Namespace" not in error
