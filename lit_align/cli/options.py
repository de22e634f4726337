"""Parsing for the commands that need no trainer: small parsers, and the same two-line errors."""

import re
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from jsonargparse import ArgumentParser

from lit_align.cli.errors import CommandLineError, nearest

_BOOLEANS = ("true", "false", "yes", "no")


class SmallParser(ArgumentParser):
    """A parser whose errors are two lines, and whose flags may stand alone or carry a value."""

    def add_flag(self, name: str, help: str) -> None:
        """Add an option that is off unless ``--name``, or ``--name true``, is given."""
        self.add_argument(name, type=bool, default=False, help=help)

    def read(self, argv: Sequence[str]) -> Any:
        """Parse the arguments of a command.

        Raises:
            CommandLineError: they are wrong.
        """
        return self.parse_args(list(self._expand(argv)))

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise the error in words for people."""
        names = [
            option for action in self._actions for option in action.option_strings if option.startswith("--")
        ]
        if found := re.search(r"[Uu]nrecognized arguments: (\S+)", message):
            given = found[1].partition("=")[0]
            guess = nearest(given, names)
            hint = f"did you mean {guess}?" if guess else f"it has {' '.join(names)}"
            raise CommandLineError(f"{self.prog} has no argument {given}", hint) from ex
        lines = [line.strip() for line in message.splitlines() if line.strip()]
        text = re.sub(r"<class '([^']+)'>", r"\1", " ".join(lines[:2]))
        raise CommandLineError(
            text.replace('Parser key "', "--").replace('":', ":"), f"see {self.prog} --help"
        ) from ex

    def _expand(self, argv: Sequence[str]) -> Iterator[str]:
        flags = {
            option
            for action in self._actions
            if action.default is False and action.nargs is None
            for option in action.option_strings
        }
        for token, following in zip(argv, [*argv[1:], ""], strict=True):
            alone = token in flags and following.lower() not in _BOOLEANS
            yield f"{token}=true" if alone else token
