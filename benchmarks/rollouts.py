"""Tokens per CPU second of rollouts: NativeGenerator against transformers' generate, in alternating pairs.

    python benchmarks/rollouts.py [--pairs 3] [--threads 1] [--group 1]

A Qwen2 of 256 dimensions, 6 layers and a vocabulary of 4,096 (7.3 million weights, float32) whose head has a
bias that ends a completion with a probability of about 1/50 a token, so that lengths are spread as in real
rollouts; at most 128 tokens. Prompts have 20 to 200 tokens (median 60). Tokens are those up to the end of a
completion; CPU seconds are of the whole process. Both sides sample from the whole vocabulary. Before the
clock runs, greedy completions of both sides are compared token for token.
"""

import argparse
import math
import platform
import random
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers import Qwen2Config, Qwen2ForCausalLM

from lit_align.batches import Forest
from lit_align.rollouts.generate import left_pad
from lit_align.rollouts.native import NativeGenerator
from lit_align.rollouts.sampling import Sampling
from lit_align.scoring.policy import Policy

PAD, END, VOCABULARY, LONGEST, END_RATE = 0, 1, 4096, 128, 1 / 50
#: Completions of a rollout, and how many of them are written at once.
CASES = [(8, 8), (32, 32), (32, 8), (128, 32)]


@dataclass
class Pair:  # of runs, one after the other
    ours: float  # tokens per CPU second
    theirs: float


def build() -> Any:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=256,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=1024,
        tie_word_embeddings=False,
        max_position_embeddings=2048,
        pad_token_id=PAD,
        eos_token_id=END,
        bos_token_id=None,
    )
    model: Any = Qwen2ForCausalLM(config)
    head = nn.Linear(256, VOCABULARY)
    head.weight = model.get_output_embeddings().weight
    spread = 0.02**2 * 256  # variance of a logit at the start
    with torch.no_grad():
        head.bias.zero_()
        head.bias[END] = math.log(END_RATE / (1 - END_RATE) * VOCABULARY) + spread / 2
    model.set_output_embeddings(head)
    return model.eval()


def prompts(count: int, seed: int) -> list[list[int]]:
    dice = random.Random(seed)
    lengths = [min(200, max(20, int(60 * dice.lognormvariate(0, 0.6)))) for _ in range(count)]
    return [[dice.randrange(2, VOCABULARY) for _ in range(length)] for length in lengths]


def native(policy: Policy, given: list[list[int]], group: int, rows: int, greedy: bool, seed: int) -> Forest:
    sampling = Sampling(LONGEST, temperature=0.0 if greedy else 1.0)
    seeds = [seed * 10_000 + i for i in range(len(given) * group)]
    return NativeGenerator(rows).generate(
        policy, None, given, completions=group, sampling=sampling, seeds=seeds
    )


def peer(
    model: Any, given: list[list[int]], group: int, rows: int, greedy: bool, seed: int
) -> list[list[int]]:
    torch.manual_seed(seed)
    # Sorted, so that rows pad each other as little as they can.
    order = sorted((prompt for prompt in given for _ in range(group)), key=len)
    found = []
    for start in range(0, len(order), rows):
        ids, mask = left_pad(order[start : start + rows], PAD, torch.device("cpu"))
        how = {"do_sample": False} if greedy else {"do_sample": True, "top_k": 0}
        output = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=LONGEST, **how)
        for row in output[:, ids.shape[1] :].tolist():
            found.append(row[: row.index(END) + 1] if END in row else row)
    return found


def timed(run: Callable[[], Any], tokens: Callable[[Any], int]) -> float:
    start = time.process_time()
    found = run()
    return tokens(found) / (time.process_time() - start)


def check(policy: Policy, model: Any, given: list[list[int]], group: int, rows: int) -> None:
    # The bias that ends a completion at random would end a greedy one at once.
    biases = [one.get_output_embeddings().bias for one in (policy.model, model)]
    kept = [bias.clone() for bias in biases]
    with torch.no_grad():
        for bias in biases:
            bias.zero_()
        ours = [completion for _, completion, _ in native(policy, given, group, rows, True, 0).sequences()]
        theirs = peer(model, given, group, rows, True, 0)
        for bias, value in zip(biases, kept, strict=True):
            bias.copy_(value)
    if sorted(ours) != sorted(theirs):
        raise SystemExit("greedy completions differ: these numbers would mean nothing")
    if len(set(map(tuple, ours))) < len(given) or max(map(len, ours)) < LONGEST:
        raise SystemExit("greedy completions are too short or too like each other to compare anything")


def measure(policy: Policy, model: Any, total: int, rows: int, group: int, pairs: int) -> list[Pair]:
    check(policy, model, prompts(total // group, 0), group, rows)
    found = []
    for i in range(pairs):
        given = prompts(total // group, i + 1)

        def ours(given: Any = given, seed: int = i) -> float:
            return timed(
                lambda: native(policy, given, group, rows, False, seed),
                lambda forest: len(forest.completion_ids),
            )

        def theirs(given: Any = given, seed: int = i) -> float:
            return timed(
                lambda: peer(model, given, group, rows, False, seed), lambda rows: sum(map(len, rows))
            )

        # Each side goes first in every other pair.
        if i % 2:
            b, a = theirs(), ours()
        else:
            a, b = ours(), theirs()
        found.append(Pair(a, b))
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=3, help="pairs of runs a case")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--group", type=int, default=1, help="completions of a prompt")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    # A policy may speed up the modules of its model; the peer gets one that nobody has touched.
    policy, model = Policy(build()), build()
    title = f"tokens per CPU second, {arguments.group} completion(s) a prompt, {arguments.pairs} pairs"
    table = Table(title=title, title_justify="left")
    for column in ("completions", "at once", "generate", "NativeGenerator", "ratio (lowest, highest)"):
        table.add_column(column, justify="right")
    for total, rows in CASES:
        pairs = measure(policy, model, total, rows, arguments.group, arguments.pairs)
        ratios = [pair.ours / pair.theirs for pair in pairs]
        table.add_row(
            str(total),
            str(rows),
            f"{statistics.median(pair.theirs for pair in pairs):,.0f}",
            f"{statistics.median(pair.ours for pair in pairs):,.0f}",
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f}, {max(ratios):.2f})",
        )
    console = Console(width=100)
    console.print(table)
    packages = ", ".join(f"{name} {version(name)}" for name in ("lit-align", "torch", "transformers"))
    console.print(f"{packages}; Python {platform.python_version()}, {platform.machine()}", soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
