"""A configuration from a stranger names nothing into being."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from lit_align.__main__ import main

MODULE = """
import pathlib
pathlib.Path({mark!r}).touch()
class Thing:
    def __init__(self, *args, **kwargs): pass
def reward(completions, **kwargs): return [0.0] * len(completions)
"""
FEW = [
    "--data.limit=4",
    "--data.cache=false",
    "--trainer.max_steps=1",
    "--trainer.enable_model_summary=false",
]
EVIL = "evil_module.Thing"
SHELL = "os.system"


@pytest.fixture(autouse=True)
def module(here: Path, marks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "evil_module.py").write_text(MODULE.format(mark=str(marks.executed)))
    monkeypatch.syspath_prepend(str(here))
    monkeypatch.delitem(sys.modules, "evil_module", raising=False)


def run(here: Path, content: Any, *arguments: str) -> int:
    text = content if isinstance(content, str) else json.dumps(content)
    (here / "config.yaml").write_text(text)
    return main(["fit", "--config", "dpo.yaml", "--config", str(here / "config.yaml"), *FEW, *arguments])


OBJECTS = {
    "model": {"model": {"class_path": EVIL}},
    "data": {"data": {"class_path": EVIL}},
    "a callback": {"trainer": {"callbacks": [{"class_path": EVIL}]}},
    "a logger": {"trainer": {"logger": {"class_path": EVIL}}},
    "the strategy": {"trainer": {"strategy": {"class_path": EVIL}}},
    "a plugin": {"trainer": {"plugins": [{"class_path": EVIL}]}},
    "the profiler": {"trainer": {"profiler": {"class_path": EVIL}}},
    "the accelerator": {"trainer": {"accelerator": {"class_path": EVIL}}},
    "the reference": {"model": {"init_args": {"reference": {"class_path": EVIL}}}},
    "inside a reference": {
        "model": {
            "init_args": {"reference": {"class_path": "Cached", "init_args": {"inner": {"class_path": EVIL}}}}
        }
    },
    "the optimiser": {"model": {"init_args": {"optim": {"name": EVIL}}}},
    "an optimiser of the shell": {"model": {"init_args": {"optim": {"name": SHELL}}}},
    "the loss": {"model": {"init_args": {"loss": EVIL}}},
    "a subprocess as callback": {
        "trainer": {"callbacks": [{"class_path": "subprocess.Popen", "init_args": {"args": "touch {mark}"}}]}
    },
    "a name that begins like ours": {"data": {"class_path": "lit_alignment.Thing"}},
    "what a module of ours imports": {"data": {"class_path": "lit_align.runtime.run_directory.os.system"}},
    "a class of Lightning that runs commands": {
        "trainer": {
            "callbacks": [{"class_path": "torch.utils.cpp_extension.load", "init_args": {"name": "x"}}]
        }
    },
}
TEXTS = {
    "a tag that calls": "model: !!python/object/apply:os.system ['touch {mark}']",
    "a tag that makes": "model: !!python/object/new:subprocess.Popen [['touch', '{mark}']]",
    "a tag that imports": "model: !!python/module:evil_module",
    "a tag that names": "trainer: {{max_steps: !!python/name:evil_module.Thing}}",
    "a tag of a class": "trainer: {{max_steps: !!python/object:evil_module.Thing {{}}}}",
    "an include": "model: {{__include__: /etc/passwd, class_path: evil_module.Thing}}",
}


@pytest.mark.parametrize("name", OBJECTS)
def test_a_name_in_a_file_is_not_imported(name: str, here: Path, marks: Any) -> None:
    content = json.loads(json.dumps(OBJECTS[name]).replace("{mark}", str(marks.executed)))
    assert run(here, content) in (1, 2)
    assert "evil_module" not in sys.modules


@pytest.mark.parametrize("name", TEXTS)
def test_a_tag_of_yaml_is_not_followed(name: str, here: Path, marks: Any) -> None:
    assert run(here, TEXTS[name].format(mark=marks.executed)) in (1, 2)
    assert "evil_module" not in sys.modules


OPTIONS = {
    "an option": ["--data={}"],
    "an option with arguments": ['--data={{"class_path": "{}"}}'],
    "a further callback": ["--trainer.callbacks+={}"],
    "help on a class": ["--model.help={}"],
    "help on data": ["--data.help={}"],
}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_name_in_an_option_is_not_imported(name: str, here: Path) -> None:
    assert main(["fit", "--config=dpo.yaml", *FEW, *[one.format(EVIL) for one in OPTIONS[name]]]) in (1, 2)
    assert "evil_module" not in sys.modules


def test_the_configuration_of_a_run_that_is_exported(here: Path) -> None:
    run_folder = here / "runs/x/1"
    (run_folder / "checkpoints").mkdir(parents=True)
    (run_folder / "checkpoints/last.ckpt").write_bytes(b"")
    (run_folder / "config.yaml").write_text(json.dumps({"model": {"class_path": EVIL}}))
    assert main(["export", str(run_folder)]) in (1, 2)
    assert "evil_module" not in sys.modules


def test_what_is_trusted_does_run(here: Path, marks: Any) -> None:
    """The mark is left when the door is opened, so that its absence means something."""
    main(["fit", "--config=dpo.yaml", "--data", EVIL, "--trust", "evil_module", *FEW])
    assert marks.executed.exists()
    marks.executed.unlink()
