"""``lit-align generate``: continue prompts from the command line or from a file."""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lit_align.cli.errors import CommandLineError
from lit_align.cli.options import SmallParser
from lit_align.cli.terminal import printable

_PROMPT_COLUMNS = ("prompt", "messages", "text", "question")


def main(argv: Sequence[str]) -> None:
    """Run the command.

    Raises:
        CommandLineError: the arguments are wrong, or the prompts cannot be read.
    """
    arguments = _parser().read(argv)
    if (arguments.prompt is None) == (arguments.prompts is None):
        raise CommandLineError(
            "generate needs either --prompt TEXT or --prompts FILE",
            'for example: lit-align generate lit-align/tiny --prompt "Where is my order?"',
        )
    rows = (
        list(_read_prompts(Path(arguments.prompts))) if arguments.prompts else [{"prompt": arguments.prompt}]
    )
    prompts = [_prompt(row, arguments.raw, number) for number, row in enumerate(rows, start=1)]

    from lit_align.cli.loading import load_generator
    from lit_align.rollouts.generate import generate_text
    from lit_align.scoring.policy import Policy

    model, tokenizer = load_generator(
        arguments.model,
        dtype=arguments.dtype,
        adapters=arguments.adapter,
        trust_remote_code=arguments.trust_remote_code,
    )
    if not tokenizer.chat_template:
        prompts = [_flat(prompt) for prompt in prompts]
    texts = generate_text(
        Policy(model),
        tokenizer,
        prompts,
        max_new_tokens=arguments.max_new_tokens,
        temperature=0.0 if arguments.greedy else arguments.temperature,
        top_p=arguments.top_p,
        top_k=arguments.top_k,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
    )
    _write(arguments.output, rows, texts, as_json=arguments.prompts is not None)


def _parser() -> SmallParser:
    parser = SmallParser(prog="lit-align generate", description="Continue prompts.")
    parser.add_argument("model", type=str, help="directory (an export of a run), Hub name, or lit-align/tiny")
    parser.add_argument(
        "--prompt", type=str, help="one prompt; a user's turn where the model has a chat template"
    )
    parser.add_argument(
        "--prompts", type=str, help="text file (a prompt per line) or JSONL (prompt or messages)"
    )
    parser.add_argument("--output", type=str, help="JSONL file to write; the terminal by default")
    parser.add_flag("--raw", help="continue the text itself, without chat template")
    parser.add_argument("--max_new_tokens", type=int, default=128, help="longest completion, in tokens")
    parser.add_argument("--temperature", type=float, default=1.0, help="0 is --greedy true")
    parser.add_argument("--top_p", type=float, default=1.0, help="sample from this much probability")
    parser.add_argument("--top_k", type=int, default=0, help="sample from so many tokens; 0 is all")
    parser.add_flag("--greedy", help="the most probable token each time")
    parser.add_argument("--seed", type=int, default=0, help="of the sampling")
    parser.add_argument("--batch_size", type=int, default=16, help="prompts at once")
    parser.add_argument(
        "--adapter", type=str, action="append", default=[], help="a LoRA adapter on top; may be repeated"
    )
    parser.add_argument("--dtype", type=str, default="auto", help="of the weights")
    parser.add_flag("--trust_remote_code", help="run code that comes with the model")
    return parser


def _read_prompts(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        raise CommandLineError(f"--prompts {path}: there is no such file", f"looked in {Path.cwd()}")
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if path.suffix not in (".jsonl", ".json"):
            yield {"prompt": line}
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise CommandLineError(
                f"{path} line {number}: this is not JSON ({error.msg})", "one object per line"
            ) from error
        yield row if isinstance(row, dict) else {"prompt": row}


def _prompt(row: dict[str, Any], raw: bool, number: int) -> str | list[dict[str, Any]]:
    name = next((n for n in _PROMPT_COLUMNS if row.get(n)), None)
    if name is None:
        raise CommandLineError(
            f"prompt {number} has none of {', '.join(_PROMPT_COLUMNS)}, but {', '.join(row) or 'nothing'}",
            'a row is {"prompt": "..."} or {"messages": [...]}',
        )
    value = row[name]
    if isinstance(value, str):
        return value if raw else [{"role": "user", "content": value}]
    turns = list(value)
    while turns and turns[-1].get("role") == "assistant":
        turns.pop()  # what the model is to write
    return turns


def _flat(prompt: str | list[dict[str, Any]]) -> str | list[dict[str, Any]]:
    """A single user's turn as plain text, for a model without a chat template."""
    if not isinstance(prompt, str) and len(prompt) == 1:
        return str(prompt[0]["content"])
    return prompt


def _write(output: str | None, rows: list[dict[str, Any]], texts: list[str], as_json: bool) -> None:
    if output is None:
        for row, text in zip(rows, texts, strict=True):
            line = json.dumps({**row, "completion": text}, ensure_ascii=False) if as_json else text
            sys.stdout.write(printable(line) + "\n")
        return
    path = Path(output)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for row, text in zip(rows, texts, strict=True):
            file.write(json.dumps({**row, "completion": text}, ensure_ascii=False) + "\n")
    print(f"{len(texts)} completions written to {path}")
