"""The front door: what it answers, and what it leaves unimported."""

import subprocess
import sys

import pytest

from lit_align import __version__
from lit_align.__main__ import _COMMANDS, main


@pytest.mark.parametrize("argv", [["--help"], ["--version"], ["recipes"], ["fitt"], []])
def test_light_answers_do_not_import_torch(argv: list[str]) -> None:
    code = (
        "import sys\nfrom lit_align.__main__ import main\n"
        f"main({argv!r})\n"
        "heavy = {'torch', 'lightning', 'transformers', 'jsonargparse', 'yaml', 'rich'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_building_the_parser_leaves_heavy_libraries_out() -> None:
    code = (
        "import sys\nimport lit_align\nfrom lit_align.__main__ import main\n"
        "assert main(['fit', '--config', 'dpo.yaml', '--print_config']) == 0\n"
        "heavy = {'peft', 'bitsandbytes', 'datasets'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"\n  {name}" in out for name in _COMMANDS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"lit-align {__version__}\n"


def test_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generat"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "error: 'generat' is not a command of lit-align\n  did you mean 'generate'?\n"


@pytest.mark.parametrize("command", ["fit", "predict", "generate", "chat", "export", "recipes", "env"])
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: lit-align")
    assert f" {command}" in out.splitlines()[0]


def test_env_names_versions_and_devices(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env"]) == 0
    lines = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())
    assert lines["lit-align"] == __version__
    assert "cores" in lines["cpu"]
    assert {"torch", "lightning", "transformers", "python", "cuda"} <= lines.keys()


def test_traceback_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIT_ALIGN_DEBUG", "1")
    with pytest.raises(Exception, match="is not a command"):
        main(["nonsense"])


def test_what_was_noted_of_an_error_is_said(monkeypatch, capsys) -> None:
    def lost(_: list[str]) -> int:
        error = ConnectionResetError("Connection reset by peer")
        error.add_note("a DataLoader worker exited unexpectedly")
        raise error

    monkeypatch.setattr("lit_align.__main__._run", lost)
    monkeypatch.delenv("LIT_ALIGN_DEBUG", raising=False)
    assert main(["fit"]) == 1
    assert "Connection reset by peer\n  a DataLoader worker exited unexpectedly" in capsys.readouterr().err
