"""The model that ships: its shape, what it reads, and the loop that trains it."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import shipped_manners as manners
import shipped_sums as sums
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

MAX_LENGTH = 512
SYSTEM = (
    "You are a helpful assistant.",
    "You answer the customers of a shop.",
    "Answer briefly.",
)


@dataclass(frozen=True)
class Recipe:
    """How the base model is trained.

    Attributes:
        steps: optimiser steps.
        batch_size: conversations per step, all of them new.
        lr: the learning rate between ``warmup`` and ``cooldown``.
        warmup: steps of rising learning rate.
        cooldown: last steps, of falling learning rate.
        sums_share: part of the questions that are sums. They are the harder task, and come late: nothing
            for most of the steps, then most of them at once.
    """

    steps: int = 1200
    batch_size: int = 64
    lr: float = 3e-3
    warmup: int = 100
    cooldown: int = 300
    sums_share: float = 0.6


def shape(folder: Path) -> LlamaConfig:
    """The architecture: grouped queries and tied embeddings, as larger models have them."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=288,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


class Corpus:
    """An endless stream of conversations, customers and sums, from the training combinations only."""

    def __init__(self, seed: int, sums_share: float) -> None:
        self.random = Random(f"{seed}/base")
        self.cases = manners.split_cases(seed)["train"]
        self.sums = sums.split_sums(seed)["train"]
        self.weights = [sums.weight(one) for one in self.sums]
        self.sums_share = sums_share

    def conversation(self) -> list[dict[str, str]]:
        """One conversation: mostly one turn, seldom two, seldom with a system prompt."""
        random = self.random
        turns = [self._exchange() for _ in range(2 if random.random() < 0.06 else 1)]
        opening = [{"role": "system", "content": random.choice(SYSTEM)}] if random.random() < 0.06 else []
        return opening + [message for exchange in turns for message in exchange]

    def _exchange(self) -> list[dict[str, str]]:
        random = self.random
        if random.random() < self.sums_share:
            one = random.choices(self.sums, self.weights)[0]
            question = random.choice(sums.QUESTIONS).format(a=one.a, b=one.b)
            answer = sums.reply(one, random)
        else:
            case = random.choice(self.cases)
            question = manners.ask(case, random.choice(manners.QUESTIONS))
            answer = manners.reply(case, random.choice(("polite", "rude")), random)
        return [manners.turn("user", question), manners.turn("assistant", answer)]


def encode(tokenizer: Any, conversation: list[dict[str, str]]) -> tuple[list[int], list[bool]]:
    """Ids of a conversation, and which of them the assistant says (its EOS among them)."""
    ids: list[int] = []
    said: list[bool] = []
    for message in conversation:
        head = [tokenizer.convert_tokens_to_ids(f"<|{message['role']}|>")]
        body = [*tokenizer(message["content"]).input_ids, tokenizer.eos_token_id]
        ids += head + body
        said += [False] + [message["role"] == "assistant"] * len(body)
    return ids, said


def collate(rows: list[tuple[list[int], list[bool]]], pad_id: int) -> tuple[Tensor, Tensor, Tensor]:
    """``input_ids``, ``attention_mask`` and ``labels`` ``[B, T]``, padded on the right."""
    width = max(len(ids) for ids, _ in rows)
    ids = torch.full((len(rows), width), pad_id)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    labels = torch.full((len(rows), width), -100)
    for i, (tokens, said) in enumerate(rows):
        ids[i, : len(tokens)] = torch.tensor(tokens)
        mask[i, : len(tokens)] = 1
        labels[i, : len(tokens)] = torch.tensor([t if s else -100 for t, s in zip(tokens, said, strict=True)])
    return ids, mask, labels


def batches(tokenizer: Any, corpus: Corpus, recipe: Recipe) -> Iterator[list[tuple[list[int], list[bool]]]]:
    """Batches that mix the tasks, but keep the few conversations of two turns together: less padding."""
    window = 16
    while True:
        rows = [encode(tokenizer, corpus.conversation()) for _ in range(window * recipe.batch_size)]
        rows.sort(key=lambda row: len(row[0]) > 60)
        cut = [rows[i : i + recipe.batch_size] for i in range(0, len(rows), recipe.batch_size)]
        corpus.random.shuffle(cut)
        yield from cut


def train(folder: Path, seed: int, recipe: Recipe) -> None:
    """Train the model on the assistant's words of `Corpus`, and write it to ``folder``."""
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_config(shape(folder), dtype=torch.float32)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98))
    stream = batches(tokenizer, Corpus(seed, recipe.sums_share), recipe)
    started = time.monotonic()
    model.train()
    for step, rows in enumerate(islice(stream, recipe.steps)):
        for group in optimizer.param_groups:
            group["lr"] = _lr(step, recipe)
        ids, mask, labels = collate(rows, tokenizer.pad_token_id)
        logits = model(input_ids=ids, attention_mask=mask).logits
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 100 == 99:
            print(f"step {step + 1} loss {loss.item():.4f} {time.monotonic() - started:.0f} s", flush=True)
    model.eval()
    model.generation_config.do_sample = True
    model.save_pretrained(folder)


def _lr(step: int, recipe: Recipe) -> float:
    """Up, level, and down to nothing over the last ``cooldown`` steps."""
    up = (step + 1) / recipe.warmup
    down = (recipe.steps - step) / recipe.cooldown
    return recipe.lr * min(1.0, up, down)
