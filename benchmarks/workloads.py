"""What both sides of the comparison share: models, rows, counts, and the meter. Needs torch and transformers.

Everything is seeded, so that two processes with different libraries work on the same weights and ids.
Token ``k`` is spelled ``t<k>``, so that a library that wants text gets exactly the ids that were drawn.
"""

import argparse
import gc
import json
import math
import random
import sys
import threading
import time
from typing import Any, NamedTuple

PAD, END, UNKNOWN = 0, 1, 2
FIRST_WORD = 3


class Shape(NamedTuple):
    vocabulary: int
    width: int
    layers: int
    heads: int
    key_value_heads: int
    inner: int
    tied: bool


SHAPES = {
    "small": Shape(4_096, 256, 6, 4, 2, 1024, False),  # the blocks are most of the work
    "big": Shape(100_000, 256, 4, 4, 2, 1024, True),  # the head is most of the work
    "tiny": Shape(512, 32, 1, 2, 1, 64, False),  # what a step costs beside its products
    "0.5B": Shape(151_936, 896, 24, 14, 2, 4864, True),
    "1.5B": Shape(151_936, 1536, 28, 12, 2, 8960, True),
}
LEARNING_RATE = 1e-5
LONGEST_COMPLETION, END_RATE = 128, 1 / 50
LORA = {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]}


def arguments(description: str, workloads: list[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("workload", choices=workloads)
    parser.add_argument("--shape", default="small", choices=list(SHAPES))
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rows", type=int, default=8, help="rows of a step; pairs, for losses of pairs")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bf16", action="store_true", help="bf16 autocast")
    parser.add_argument("--checkpointing", action="store_true", help="recompute blocks in the backward pass")
    parser.add_argument("--grouped", action="store_true", help="rows of like length in a batch")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--attention", default="sdpa", help="implementation of transformers, on both sides")
    parser.add_argument("--micro", type=int, help="tokens at a time (ours only; the peer takes none)")
    parser.add_argument("--sparse", action="store_true", help="sparse gradients of the embedding (ours only)")
    return parser


def sampling_arguments(description: str) -> argparse.ArgumentParser:
    parser = arguments(description, ["grpo", "rloo", "ppo", "ppo_shared"])
    parser.add_argument("--group", type=int, default=8, help="completions of a prompt")
    return parser


def config(shape: str, **more: Any) -> Any:
    from transformers import Qwen2Config

    s = SHAPES[shape]
    return Qwen2Config(
        vocab_size=s.vocabulary,
        hidden_size=s.width,
        num_hidden_layers=s.layers,
        num_attention_heads=s.heads,
        num_key_value_heads=s.key_value_heads,
        intermediate_size=s.inner,
        tie_word_embeddings=s.tied,
        max_position_embeddings=4096,
        attention_dropout=0.0,
        pad_token_id=PAD,
        eos_token_id=END,
        bos_token_id=None,
        **more,
    )


def language_model(shape: str, attention: str = "sdpa") -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config(shape), attn_implementation=attention).float()


def with_adapters(model: Any) -> Any:
    """LoRA from the same start on both sides."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    return get_peft_model(model, LoraConfig(**LORA, task_type="CAUSAL_LM"))


def ending_model(shape: str) -> Any:
    """A language model whose completions end with a probability of about END_RATE a token.

    A random model hardly ever ends; a bias on its head gives lengths as of real rollouts.
    """
    import torch

    model = language_model(shape)
    old = model.get_output_embeddings()
    head = torch.nn.Linear(old.in_features, old.out_features)
    head.weight = old.weight  # tied where it was
    with torch.no_grad():
        head.bias.zero_()
        # exp of a logit of variance v has mean exp(v / 2).
        half_variance = 0.02**2 * old.in_features / 2
        head.bias[END] = math.log(END_RATE / (1 - END_RATE) * old.out_features) + half_variance
    head.bias.requires_grad_(False)
    model.set_output_embeddings(head)
    return model


def even_ids(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """A reward that costs nothing and differs: the share of even ids."""
    return [sum(i % 2 == 0 for i in ids) / max(1, len(ids)) for ids in completion_ids]


def classifier(shape: str, seed: int = 0, attention: str = "sdpa") -> Any:
    import torch
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(seed)
    made = config(shape, num_labels=1)
    return AutoModelForSequenceClassification.from_config(made, attn_implementation=attention).float()


def tokenizer(shape: str) -> Any:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": PAD, "<end>": END, "<unknown>": UNKNOWN}
    words |= {f"t{i}": i for i in range(FIRST_WORD, SHAPES[shape].vocabulary)}
    inner = Tokenizer(WordLevel(words, unk_token="<unknown>"))
    inner.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        eos_token="<end>",
        unk_token="<unknown>",
        model_max_length=4096,
    )


def rows(shape: str, count: int, grouped_by: int = 0) -> list[dict[str, list[int]]]:
    """Pairs ``prompt``, ``chosen``, ``rejected``: lengths log-normal, cut to 20 .. 200; ids skewed.

    Args:
        shape: whose vocabulary.
        count: how many.
        grouped_by: with a number of rows, batches of that size hold rows of like length, in random order.
    """
    source = random.Random(7)
    highest = SHAPES[shape].vocabulary - 1

    def length() -> int:
        while True:
            drawn = round(source.lognormvariate(4.1, 0.6))
            if 20 <= drawn <= 200:
                return drawn

    def ids() -> list[int]:
        return [FIRST_WORD + int((highest - FIRST_WORD) * source.random() ** 3) for _ in range(length())]

    found = [{"prompt": ids(), "chosen": [*ids(), END], "rejected": [*ids(), END]} for _ in range(count)]
    if grouped_by:
        found.sort(key=lambda row: len(row["prompt"]) + max(len(row["chosen"]), len(row["rejected"])))
        batches = [found[i : i + grouped_by] for i in range(0, count, grouped_by)]
        source.shuffle(batches)
        found = [row for batch in batches for row in batch]
    return found


def useful_tokens(of: list[dict[str, list[int]]], pairs: bool) -> int:
    """Tokens of the straightforward method, without its padding: each completion with its prompt."""
    total = sum(len(row["prompt"]) + len(row["chosen"]) for row in of)
    return total + sum(len(row["prompt"]) + len(row["rejected"]) for row in of) if pairs else total


def floor_flops(shape: str, of: list[dict[str, list[int]]], workload: str) -> float:
    """Floating-point operations that the step cannot do without: its matrix products, nothing twice.

    6 per weight and token that is trained (2 forward, 4 backward), 2 where it is only scored, 4 under a
    frozen weight; each prompt once; the head at completion tokens only. Attention is left out.
    """
    s = SHAPES[shape]
    head_size = s.width // s.heads
    block = s.width * head_size * (2 * s.heads + 2 * s.key_value_heads) + 3 * s.width * s.inner
    pairs = workload not in ("sft", "overhead")
    completions = sum(len(row["chosen"]) + pairs * len(row["rejected"]) for row in of)
    tokens = completions + sum(len(row["prompt"]) for row in of)
    frozen = workload == "dpo_lora"
    each = 4 if frozen else 6
    total = each * s.layers * block * tokens
    if workload != "reward":
        total += each * s.vocabulary * s.width * completions
    if workload in ("dpo", "dpo_lora"):
        total += 2 * (s.layers * block * tokens + s.vocabulary * s.width * completions)
    return float(total)


def product_rate(size: int = 1024, seconds: float = 0.5) -> float:
    """Float32 matrix products on this machine, now: operations in a CPU second, the best of several."""
    import torch

    a, b = torch.randn(size, size), torch.randn(size, size)
    best, end = 0.0, time.process_time() + seconds
    while time.process_time() < end:
        start = time.process_time()
        torch.mm(a, b)
        best = max(best, 2 * size**3 / (time.process_time() - start))
    return best


class Memory(threading.Thread):
    """Resident memory, looked at every 5 ms."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        import psutil  # comes with accelerate

        self.process = psutil.Process()
        self.peak = 0
        self.start()

    def now(self) -> int:
        return int(self.process.memory_info().rss)

    def run(self) -> None:
        while True:
            self.peak = max(self.peak, self.now())
            time.sleep(0.005)


class Meter:
    """Clock, CPU seconds and memory of a training run, and the loss of each step."""

    def __init__(self) -> None:
        self.memory = Memory()
        self.losses: list[float] = []
        self.times: list[float] = []

    def begin(self) -> None:
        import torch

        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self.base = self.memory.peak = self.memory.now()
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def step(self, loss: Any) -> None:
        self.losses.append(float(loss))  # on a GPU it waits for the step
        self.times.append(time.perf_counter())

    def end(self) -> dict[str, Any]:
        import torch

        wall, cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu
        megabyte = 2**20
        return {
            "start": self.cpu,
            "base": self.base / megabyte,
            "wall": wall,
            "cpu": cpu,
            "grown": (self.memory.peak - self.base) / megabyte,
            "peak": self.memory.peak / megabyte,
            "gpu_peak": torch.cuda.max_memory_allocated() / megabyte if torch.cuda.is_available() else 0.0,
            "losses": self.losses,
            "times": self.times,
        }


def report(result: dict[str, Any]) -> None:
    print("RESULT " + json.dumps(result), flush=True)


def warm_up(shape: str) -> None:
    """Touch each kernel once, on a model that is thrown away."""
    import torch

    model = language_model(shape)
    ids = torch.randint(FIRST_WORD, 100, (2, 16))
    model(input_ids=ids, labels=ids).loss.backward()


def quiet() -> None:
    import os
    import warnings

    os.environ |= {
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
    }
    warnings.filterwarnings("ignore")
    sys.dont_write_bytecode = True
