"""``lit-align chat`` with its input from a pipe."""

import io
from typing import Any

import pytest

from lit_align.__main__ import main
from lit_align.cli import chat


def _chat(monkeypatch: pytest.MonkeyPatch, said: str, *argv: str) -> list[list[dict[str, str]]]:
    """Run a conversation; what each answer was given as history."""
    histories: list[list[dict[str, str]]] = []
    original = chat._answer

    def spy(model: Any, tokenizer: Any, history: list[dict[str, str]], arguments: Any) -> str:
        histories.append([dict(turn) for turn in history])
        return original(model, tokenizer, history, arguments)

    monkeypatch.setattr(chat, "_answer", spy)
    monkeypatch.setattr("sys.stdin", io.StringIO(said))
    assert main(["chat", "lit-align/tiny", "--max_new_tokens", "5", "--temperature", "0", *argv]) == 0
    return histories


def test_history_grows_until_reset(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    histories = _chat(monkeypatch, "Hello\nAnd now?\n\n/reset\nHello\n", "--system", "Be kind.")
    system = {"role": "system", "content": "Be kind."}
    assert [len(history) for history in histories] == [2, 4, 2]
    assert all(history[0] == system for history in histories)
    assert histories[1][2]["role"] == "assistant"
    assert histories[1][2]["content"] in capsys.readouterr().out


def test_exit_leaves_and_unknown_commands_help(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _chat(monkeypatch, "/what\n/exit\nHello\n") == []
    assert "/reset" in capsys.readouterr().out


def test_output_is_stripped_of_controls(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "transformers.PreTrainedTokenizerBase.decode", lambda self, *a, **k: "\x1b[2Jhello\x07 there\n"
    )
    _chat(monkeypatch, "Hello\n")
    out = capsys.readouterr().out
    assert "hello there" in out
    assert "\x1b" not in out
    assert "\x07" not in out
