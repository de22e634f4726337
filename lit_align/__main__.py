"""The front door: answers without torch what can be answered without it, and hands over the rest."""

import importlib
import os
import sys
from collections.abc import Sequence

from lit_align import __version__
from lit_align.cli.errors import CommandLineError, nearest
from lit_align.cli.terminal import printable
from lit_align.runtime.offline import go_offline, no_telemetry

# command: (module of lit_align.cli, what it does)
_COMMANDS = {
    "fit": ("train", "train a model"),
    "validate": ("train", "metrics of a model on the validation data"),
    "test": ("train", "metrics of a model on the test data"),
    "predict": ("train", "log-probs, rewards and margins of every row, as JSONL"),
    "generate": ("generate", "continue prompts, given on the command line or in a file"),
    "chat": ("chat", "talk to a model in the terminal"),
    "export": ("export", "write a run or a checkpoint as a Hugging Face directory"),
    "recipes": ("recipes", "list the configurations that the package carries"),
    "env": ("env", "versions and devices, for a bug report"),
}
_TRAINER_COMMANDS = frozenset(name for name, (module, _) in _COMMANDS.items() if module == "train")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments after the program's name; the process's own by default.

    Returns:
        The exit status: 0, 1 where a command failed, 2 where the command line was wrong.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    if arguments[0] in ("-V", "--version"):
        print(f"lit-align {__version__}")
        return 0
    try:
        return _run(arguments)
    except CommandLineError as error:
        if _debugging():
            raise
        return _complain(error, status=2)
    except (ValueError, OSError, ImportError) as error:
        # The messages of these are written for people; anything else is a bug and shows its traceback.
        if _debugging() or isinstance(error, BrokenPipeError):
            raise
        return _complain(error, status=1)
    except SystemExit as done:
        # How the parser ends after --help and --print_config.
        return done.code if isinstance(done.code, int) else 0
    except KeyboardInterrupt:
        return 130


def _run(arguments: list[str]) -> int:
    no_telemetry()
    command, rest = arguments[0], arguments[1:]
    if command not in _COMMANDS:
        guess = nearest(command, _COMMANDS)
        raise CommandLineError(
            f"{command!r} is not a command of lit-align",
            f"did you mean '{guess}'?" if guess else f"it has {', '.join(_COMMANDS)}",
        )
    if command not in _TRAINER_COMMANDS and "--offline" in rest:
        # Before anything is imported that would ask the Hub; the trainer's commands have it as an option.
        rest.remove("--offline")
        go_offline()
    module = importlib.import_module(f"lit_align.cli.{_COMMANDS[command][0]}")
    module.main(arguments if command in _TRAINER_COMMANDS else rest)
    return 0


def _complain(error: Exception, status: int) -> int:
    hint = getattr(error, "hint", "") or "LIT_ALIGN_DEBUG=1 shows where it was raised"
    text = "\n  ".join([str(error) or type(error).__name__, *getattr(error, "__notes__", ())])
    # It may quote a file.
    print(printable(f"error: {text}\n  {hint}"), file=sys.stderr)
    return status


def _debugging() -> bool:
    return os.environ.get("LIT_ALIGN_DEBUG", "") not in ("", "0")


def _help() -> str:
    width = max(map(len, _COMMANDS))
    lines = "\n".join(f"  {name:<{width}}  {text}" for name, (_, text) in _COMMANDS.items())
    return f"""lit-align {__version__}: fine-tune and align language models.

  lit-align fit --config dpo.yaml
  lit-align fit --config dpo.yaml --model.policy Qwen/Qwen2.5-0.5B --data.train pairs.jsonl
  lit-align chat runs/dpo/1/export

{lines}

lit-align COMMAND --help lists the arguments of one command, and lit-align fit --model.help DPO those of
a method.
--offline with any of them: names of models and data mean what lies here, and no Hub is asked.
LIT_ALIGN_DEBUG=1 shows tracebacks. Any option can be a variable: LIT_ALIGN_TRAINER__MAX_STEPS=10."""


if __name__ == "__main__":
    sys.exit(main())
