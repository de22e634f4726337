"""A checkpoint from a stranger is read as data."""

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_align.__main__ import main
from lit_align.runtime.checkpoint_io import AtomicCheckpointIO, CheckpointError
from lit_align.runtime.digest import sha256_of
from lit_align.runtime.manifest import Content, Manifest


class Payload:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return (os.system, (self.command,))


class Quiet(dict):
    """A mapping that is rebuilt by a call."""

    command = ""

    def __reduce__(self) -> Any:
        return (eval, (f"__import__('os').system({self.command!r})",))


PLACES = (
    "state_dict",
    "optimizer_states",
    "callbacks",
    "loops",
    "hyper_parameters",
    "lr_schedulers",
    "epoch",
)


@pytest.mark.parametrize("place", PLACES)
def test_a_payload_anywhere_is_refused(place: str, tmp_path: Path, marks: Any) -> None:
    content: dict[str, Any] = {"state_dict": {"w": torch.ones(2)}, "global_step": 1, "epoch": 0}
    content[place] = {"x": Payload(marks.shell)}
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match="could run code"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "a.ckpt", weights_only=False)


def test_a_manifest_makes_it_no_better(tmp_path: Path, marks: Any) -> None:
    path = tmp_path / "a.ckpt"
    torch.save({"state_dict": Payload(marks.shell)}, path)
    Manifest((Content.now(sha256_of(path), path.stat().st_size, 1, 0),)).write(path)
    with pytest.raises(CheckpointError, match="could run code"):
        AtomicCheckpointIO().load_checkpoint(path)


def test_a_mapping_that_is_a_call(tmp_path: Path, marks: Any) -> None:
    evil = Quiet()
    evil.command = marks.shell
    torch.save({"state_dict": evil}, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match="could run code"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "a.ckpt")


def test_a_bare_pickle_and_the_old_format(tmp_path: Path, marks: Any) -> None:
    (tmp_path / "bare.ckpt").write_bytes(pickle.dumps({"state_dict": Payload(marks.shell)}))
    torch.save({"w": Payload(marks.shell)}, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    for name in ("bare.ckpt", "old.ckpt"):
        with pytest.raises(CheckpointError, match="could run code"):
            AtomicCheckpointIO().load_checkpoint(tmp_path / name)


def test_a_pickle_put_into_a_good_file(tmp_path: Path, marks: Any) -> None:
    torch.save({"state_dict": {"w": torch.ones(2)}}, tmp_path / "good.ckpt")
    evil = pickle.dumps(Payload(marks.shell))
    with zipfile.ZipFile(tmp_path / "good.ckpt") as good, zipfile.ZipFile(tmp_path / "a.ckpt", "w") as bad:
        for item in good.infolist():
            bad.writestr(item, evil if item.filename.endswith("data.pkl") else good.read(item))
    with pytest.raises(CheckpointError, match="could run code"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "a.ckpt")


@pytest.mark.parametrize("command", ["fit", "validate", "predict", "export"])
def test_no_command_runs_it(command: str, here: Path, marks: Any) -> None:
    path = here / "a.ckpt"
    torch.save({"state_dict": {"w": Payload(marks.shell)}, "loops": {}}, path)
    few = ["--data.limit=4", "--data.cache=false", "--trainer.enable_model_summary=false"]
    if command == "export":
        (here / "config.yaml").write_text("model: {class_path: SFT, init_args: {policy: lit-align/tiny}}")
        arguments = ["export", str(path)]
    else:
        arguments = [command, "--config=sft.yaml", "--ckpt_path", str(path), *few]
    with pytest.raises(CheckpointError, match="could run code"):
        main(arguments)


def test_weights_of_a_model_directory(here: Path, marks: Any) -> None:
    """``pytorch_model.bin`` is a pickle too."""
    from lit_align.models.build import build_causal_lm
    from lit_align.shipped import find

    source = find("lit-align/tiny")
    assert source is not None
    folder = here / "model"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((Path(source) / name).read_bytes())
    torch.save({"model.embed_tokens.weight": Payload(marks.shell)}, folder / "pytorch_model.bin")
    with pytest.raises(Exception, match=r"(?i)weights_only|unpickl|unsupported|safetensors|load"):
        build_causal_lm(str(folder))
