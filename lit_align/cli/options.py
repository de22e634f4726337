"""Parsing for the commands that need no trainer: small parsers, and the same two-line errors."""

import re
from typing import NoReturn

from jsonargparse import ArgumentParser

from lit_align.cli.errors import CommandLineError, nearest


class SmallParser(ArgumentParser):
    """A parser whose errors are two lines."""

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
