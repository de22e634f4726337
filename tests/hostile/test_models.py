"""Files that come with a model or tokenizer run nothing and write nowhere else."""

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from lit_align.models.build import build_causal_lm
from lit_align.models.export import save_pretrained_dir
from lit_align.models.tokenizers import load_tokenizer
from lit_align.shipped import find

CODE = """
import pathlib
pathlib.Path({mark!r}).touch()
from transformers import LlamaConfig as Config, LlamaForCausalLM as Model
from transformers import PreTrainedTokenizerFast as Tokenizer
"""


@pytest.fixture
def model(here: Path, marks: Any) -> Path:
    """The shipped model's files, with code beside them."""
    source = find("lit-align/tiny")
    assert source is not None
    shutil.copytree(source, here / "model")
    (here / "model/evil.py").write_text(CODE.format(mark=str(marks.executed)))
    return here / "model"


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


AUTO = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
CONFIGS = {
    "code of its own": {"auto_map": AUTO},
    "code of its own and an unknown type": {"auto_map": AUTO, "model_type": "evil"},
    "code of another repository": {"auto_map": {"AutoModelForCausalLM": "someone/evil--evil.Model"}},
    "a kernel of the Hub as attention": {"_attn_implementation": "someone/evil-kernel"},
    "a kernel of the Hub, spelled openly": {"attn_implementation": "someone/evil-kernel:run"},
    "a generation loop of its own": {"custom_generate": "evil"},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_configuration_of_a_model(name: str, model: Path) -> None:
    edit(model / "config.json", **CONFIGS[name])
    try:
        built = build_causal_lm(str(model))
    except (ValueError, ImportError, OSError):
        return
    # Or what it says is not followed.
    assert type(built).__module__.startswith("transformers.")


@pytest.mark.parametrize(
    "changes",
    [
        {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"]}},
        {"tokenizer_class": "evil.Tokenizer"},
        {"auto_map": {"AutoTokenizer": [None, "evil.Tokenizer"]}, "tokenizer_class": "Evil"},
    ],
    ids=["code of its own", "a class by its path", "code and an unknown class"],
)
def test_the_configuration_of_a_tokenizer(changes: dict[str, Any], model: Path) -> None:
    edit(model / "tokenizer_config.json", **changes)
    try:
        found = load_tokenizer(str(model))
    except (ValueError, ImportError):
        return
    assert type(found).__module__.startswith("transformers.")


@pytest.mark.parametrize("name", ["../../../victim", "../victim", "{victim}"])
def test_names_of_templates_do_not_leave_the_export(name: str, model: Path, here: Path, marks: Any) -> None:
    tokenizer = load_tokenizer(str(model))
    inside = here / "runs/x/1/export"
    text = name.format(victim=marks.victim.with_suffix(""))
    tokenizer.chat_template = {"default": "{{ messages }}", text: "written outside"}
    before = {path for path in here.rglob("*") if "export" not in path.parts}
    # Refused by name, or written where it belongs.
    with contextlib.suppress(ValueError):
        save_pretrained_dir(build_causal_lm(str(model)), tokenizer, inside)
    after = {path for path in here.rglob("*") if "export" not in path.parts and path.suffix == ".jinja"}
    assert after <= before


def test_an_export_does_not_write_through_a_link(model: Path, here: Path, marks: Any) -> None:
    export = here / "export"
    export.mkdir()
    (export / "config.json").write_text("{}")
    for name in ("model.safetensors", "tokenizer.json"):
        (export / name).symlink_to(marks.victim)
    save_pretrained_dir(build_causal_lm(str(model)), load_tokenizer(str(model)), export)
    assert not any(path.is_symlink() for path in export.iterdir())


def test_an_export_is_not_put_behind_a_link(model: Path, here: Path, marks: Any) -> None:
    folder = marks.victim.parent / "elsewhere"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (here / "export").symlink_to(folder)
    with pytest.raises(FileExistsError, match="is a link"):
        save_pretrained_dir(build_causal_lm(str(model)), None, here / "export")
    assert [path.name for path in folder.iterdir()] == ["config.json"]
