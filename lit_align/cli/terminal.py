"""Text from a model, made safe for a terminal."""

import re

# Escape sequences (colours, cursor, window titles, clipboard), then the controls that remain but for
# newline and tab, and the marks that turn the direction of text around.
_SEQUENCE = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|[\]PX^_].*?(\x07|\x1b\\|$)|[@-Z\\-_])", re.DOTALL)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    r"""The text without control characters: a model must not move the cursor or set the clipboard.

    >>> printable("\x1b[31mred\x1b[0m\x07 and plain")
    'red and plain'
    """
    return _CONTROL.sub("", _SEQUENCE.sub("", text))
