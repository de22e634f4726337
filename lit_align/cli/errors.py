"""What the command line says when it cannot go on: one line of what is wrong, one of what to do."""

from collections.abc import Iterable
from difflib import get_close_matches


class CommandLineError(Exception):
    """A mistake in the arguments, told in two lines.

    Args:
        message: what was found and where.
        hint: what to write instead.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that looks most like ``name``, case aside; ``None`` if none does.

    >>> nearest("betta", ["beta", "lr"])
    'beta'
    >>> nearest("xyz", ["beta", "lr"]) is None
    True
    """
    by_lower = {one.lower(): one for one in known}
    found = get_close_matches(name.lower(), by_lower, n=1, cutoff=0.5)
    return by_lower[found[0]] if found else None
