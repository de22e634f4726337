"""What a model writes cannot command the terminal."""

import pytest

from lit_align.cli.terminal import printable


@pytest.mark.parametrize(
    "text",
    [
        "\x1b[2J",
        "\x1b[1;31m",
        "\x1b]0;title\x07",
        "\x1b]52;c;ZWNobyBoaQ==\x1b\\",
        "\x1bP+q544e\x1b\\",
        "\x07\x08\x7f",
        "\x9b31m"[:1],
        "\r",
        "\u202e",
    ],
)
def test_controls_are_removed(text: str) -> None:
    assert printable(f"a{text}b") == "ab"


def test_text_stays() -> None:
    assert printable("Grüße,\n\t日本 🙂 [31m") == "Grüße,\n\t日本 🙂 [31m"
