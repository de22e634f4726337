"""``lit-align chat``: a conversation in the terminal, token by token."""

import sys
from collections.abc import Sequence
from typing import Any

from lit_align.cli.options import SmallParser
from lit_align.cli.terminal import printable

_HELP = "/reset starts anew, /exit leaves (so does the end of input)"


def main(argv: Sequence[str]) -> None:
    """Run the command: read turns from standard input, until its end or ``/exit``."""
    parser = SmallParser(prog="lit-align chat", description="Talk to a model.")
    parser.add_argument("model", type=str, help="directory (an export of a run), Hub name, or lit-align/tiny")
    parser.add_argument("--system", type=str, help="the system's turn that opens every conversation")
    parser.add_argument(
        "--adapter", type=str, action="append", default=[], help="a LoRA adapter on top; may be repeated"
    )
    parser.add_argument("--max_new_tokens", type=int, default=512, help="longest answer, in tokens")
    parser.add_argument(
        "--temperature", type=float, default=0.7, help="0 takes the most probable token each time"
    )
    parser.add_argument("--top_p", type=float, default=1.0, help="sample from this much probability")
    parser.add_argument("--top_k", type=int, default=0, help="sample from so many tokens; 0 is all")
    parser.add_argument("--seed", type=int, default=0, help="of the sampling")
    parser.add_argument("--dtype", type=str, default="auto", help="of the weights")
    parser.add_flag("--trust_remote_code", help="run code that comes with the model")
    arguments = parser.read(argv)

    import torch

    from lit_align.cli.loading import load_generator

    model, tokenizer = load_generator(
        arguments.model,
        dtype=arguments.dtype,
        adapters=arguments.adapter,
        trust_remote_code=arguments.trust_remote_code,
    )
    torch.manual_seed(arguments.seed)
    if sys.stdin.isatty():
        print(f"{arguments.model}  ({_HELP})")
    _converse(model, tokenizer, arguments)


def _converse(model: Any, tokenizer: Any, arguments: Any) -> None:
    opening = [{"role": "system", "content": arguments.system}] if arguments.system else []
    history = list(opening)
    while (said := _read()) is not None:
        if said in ("/exit", "/quit"):
            return
        if said == "/reset":
            history = list(opening)
            print("(a new conversation)")
        elif said.startswith("/"):
            print(_HELP)
        elif said:
            history.append({"role": "user", "content": said})
            history.append({"role": "assistant", "content": _answer(model, tokenizer, history, arguments)})


def _read() -> str | None:
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return None


def _answer(model: Any, tokenizer: Any, history: list[dict[str, str]], arguments: Any) -> str:
    """Stream the answer to the terminal and return it."""
    from transformers import TextStreamer

    from lit_align.rollouts.generate import encode_prompt, generation_mode, left_pad, sampling_arguments

    class Terminal(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            print(printable(text), end="\n" if stream_end else "", flush=True)

    prompt = history if tokenizer.chat_template else history[-1]["content"]
    ids, mask = left_pad([encode_prompt(tokenizer, prompt)], 0, next(model.parameters()).device)
    options = sampling_arguments(
        tokenizer, arguments.max_new_tokens, arguments.temperature, arguments.top_p, arguments.top_k
    )
    with generation_mode(model):
        output = model.generate(
            input_ids=ids,
            attention_mask=mask,
            streamer=Terminal(tokenizer, skip_prompt=True, skip_special_tokens=True),
            **options,
        )
    return str(tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True))
