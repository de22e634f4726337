"""``lit-align generate`` on the shipped model and on exports."""

import json
from pathlib import Path

import pytest

from lit_align.__main__ import main

SHORT = ["--greedy", "--max_new_tokens", "6"]


def test_prompt_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "lit-align/tiny", "--prompt", "Where is my order?", *SHORT]) == 0
    first = capsys.readouterr().out
    assert first.strip()
    main(["generate", "lit-align/tiny", "--prompt", "Where is my order?", *SHORT])
    assert capsys.readouterr().out == first


def test_file_in_and_file_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts, output = tmp_path / "in.jsonl", tmp_path / "sub" / "out.jsonl"
    turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "to be written"}]
    rows = [{"prompt": "Hello", "id": 7}, {"messages": turns}, {"text": "Hello"}]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    argv = ["generate", "lit-align/tiny", "--prompts", str(prompts), "--output", str(output), *SHORT]
    assert main([*argv, "--batch_size", "2"]) == 0
    written = [json.loads(line) for line in output.read_text().splitlines()]
    assert [{k: v for k, v in row.items() if k != "completion"} for row in written] == rows
    assert len({row["completion"] for row in written}) == 1  # three spellings of one conversation
    assert str(output) in capsys.readouterr().out


def test_lines_of_text_give_lines_of_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in.txt").write_text("Hello\n\nWhat is 2 + 3?\n")
    assert main(["generate", "lit-align/tiny", "--prompts", str(tmp_path / "in.txt"), *SHORT]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["prompt"] for row in rows] == ["Hello", "What is 2 + 3?"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [('{"prompt": "x"\n', "line 1"), ('{"prmpt": "x"}\n', "prompt 1 has none of prompt, messages")],
)
def test_bad_files_are_told(
    tmp_path: Path, content: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in.jsonl").write_text(content)
    assert main(["generate", "lit-align/tiny", "--prompts", str(tmp_path / "in.jsonl")]) == 2
    assert expected in capsys.readouterr().err


def test_bad_sampling_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "lit-align/tiny", "--prompt", "x", "--top_p", "2"]) == 1
    assert "top_p is 2.0" in capsys.readouterr().err


@pytest.mark.parametrize("flag", [["--greedy"], ["--greedy", "true"], ["--greedy=true"]])
def test_flags_alone_and_with_a_value(flag: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["generate", "lit-align/tiny", "--prompt", "Hello", "--max_new_tokens", "4"]
    assert main([*argv, *flag, "--seed", "1"]) == 0
    first = capsys.readouterr().out
    assert main([*argv, "--seed", "2", *flag]) == 0
    assert capsys.readouterr().out == first
