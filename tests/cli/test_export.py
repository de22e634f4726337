"""``lit-align export``: a run or a checkpoint becomes a directory that others can load."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from lit_align.__main__ import main

FAST = [
    "--data.limit=8",
    "--data.batch_size=4",
    "--data.cache=false",
    "--model.lr=0.01",
    "--trainer.max_steps=2",
    "--trainer.enable_model_summary=false",
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("export")
    for name in ("dpo_lora", "reward"):
        assert main(["fit", "--config", f"{name}.yaml", f"--trainer.default_root_dir={root}", *FAST]) == 0
    return root / "runs"


def _logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(torch.tensor([[5, 6, 7, 8]])).logits


def test_adapters_alone_and_merged_say_the_same(runs: Path, tmp_path: Path) -> None:
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM

    run = runs / "dpo_lora" / "1"
    assert main(["export", str(run), "--output", str(tmp_path / "adapter")]) == 0
    assert main(["export", str(run), "--merge"]) == 0
    merged = AutoModelForCausalLM.from_pretrained(run / "export-merged")
    adapter = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    at_fit = AutoPeftModelForCausalLM.from_pretrained(run / "export")
    assert torch.equal(_logits(adapter), _logits(at_fit))
    torch.testing.assert_close(_logits(merged), _logits(adapter), rtol=0, atol=1e-4)
    with adapter.disable_adapter():
        assert (_logits(adapter) - _logits(merged)).abs().max() > 1e-3  # training changed something
    assert not (tmp_path / "adapter" / "model.safetensors").exists()


def test_generate_loads_adapters_on_their_base(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = runs / "dpo_lora" / "1"
    short = ["--prompt", "Hello", "--max_new_tokens", "6", "--greedy", "true"]
    assert main(["generate", str(run / "export"), *short]) == 0
    on_base = capsys.readouterr().out
    assert main(["generate", "lit-align/tiny", "--adapter", str(run / "export"), *short]) == 0
    assert capsys.readouterr().out == on_base


def test_a_checkpoint_file_and_a_reward_model(runs: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    run = runs / "reward" / "1"
    output = tmp_path / "out"
    assert main(["export", str(run / "checkpoints" / "last.ckpt"), "--output", str(output)]) == 0
    a = AutoModelForSequenceClassification.from_pretrained(output)
    b = AutoModelForSequenceClassification.from_pretrained(run / "export")
    assert torch.equal(a.score.weight, b.score.weight)


def test_a_reward_model_cannot_chat(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", str(runs / "reward" / "1" / "export")]) == 1
    assert "is a classifier" in capsys.readouterr().err


def test_a_checkpoint_needs_its_configuration(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = tmp_path / "deep" / "last.ckpt"
    alone.parent.mkdir()
    shutil.copy(runs / "reward" / "1" / "checkpoints" / "last.ckpt", alone)
    assert main(["export", str(alone)]) == 2
    assert "config.yaml" in capsys.readouterr().err
    assert main(["export", str(tmp_path)]) == 2
    assert "holds no checkpoints" in capsys.readouterr().err


def test_a_checkpoint_of_another_model_is_refused(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(runs / "reward" / "1" / "config.yaml", tmp_path)
    shutil.copy(runs / "dpo_lora" / "1" / "checkpoints" / "last.ckpt", tmp_path)
    assert main(["export", str(tmp_path / "last.ckpt")]) == 1
    assert "does not belong to this model" in capsys.readouterr().err


def test_a_foreign_configuration_is_not_trusted(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(runs / "reward" / "1" / "checkpoints" / "last.ckpt", tmp_path)
    (tmp_path / "config.yaml").write_text(json.dumps({"model": {"class_path": "antigravity.Model"}}))
    assert main(["export", str(tmp_path / "last.ckpt")]) == 2
    assert "--trust antigravity" in capsys.readouterr().err
