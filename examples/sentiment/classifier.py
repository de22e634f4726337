"""Two judges of sentiment: a BERT that gives the reward, and word counts that only look on."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import BertConfig, BertForSequenceClassification


def train(
    rows: list[dict[str, Any]],
    held_out: list[dict[str, Any]],
    tokenizer: Any,
    folder: Path,
    epochs: int = 4,
) -> float:
    """Train a BERT on the labels and write it to ``folder``; returns its accuracy on the rows held out."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=128,
        hidden_dropout_prob=0.2,
        pad_token_id=tokenizer.pad_token_id,
        id2label={0: "NEGATIVE", 1: "POSITIVE"},
        label2id={"NEGATIVE": 0, "POSITIVE": 1},
    )
    model = BertForSequenceClassification(config)
    batches = len(rows) // 32
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=epochs * batches)
    for _ in range(epochs):
        order = torch.randperm(len(rows)).tolist()
        for b in range(batches):
            some = [rows[i] for i in order[b * 32 : (b + 1) * 32]]
            labels = torch.tensor([row["label"] for row in some])
            loss = F.cross_entropy(_logits(model, tokenizer, _cut(some)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()
    with torch.no_grad():
        said = [
            int(label)
            for i in range(0, len(held_out), 64)
            for label in _logits(model, tokenizer, [r["text"] for r in held_out[i : i + 64]]).argmax(-1)
        ]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    right = [label == row["label"] for label, row in zip(said, held_out, strict=True)]
    return sum(right) / len(right)


def _cut(rows: list[dict[str, Any]]) -> list[str]:
    """Texts, half of them without their end: completions may be cut off as well."""
    texts = []
    for i, row in enumerate(rows):
        words = row["text"].split()
        texts.append(" ".join(words if i % 2 else words[: max(4, len(words) * 2 // 3)]))
    return texts


def _logits(model: Any, tokenizer: Any, texts: list[str]) -> torch.Tensor:
    rows = tokenizer(texts, padding=True, truncation=True, max_length=128, return_tensors="pt")
    logits: torch.Tensor = model(input_ids=rows["input_ids"], attention_mask=rows["attention_mask"]).logits
    return logits


class WordCounts:
    """Naive Bayes: whether the words of a text are those of positive reviews. It gives no reward."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        counts = {label: Counter[str]() for label in (0, 1)}
        for row in rows:
            counts[row["label"]].update(set(row["text"].split()))
        totals = {label: sum(of_label.values()) for label, of_label in counts.items()}
        words = counts[0].keys() | counts[1].keys()
        self.evidence = {
            word: math.log((counts[1][word] + 1) / (totals[1] + len(words)))
            - math.log((counts[0][word] + 1) / (totals[0] + len(words)))
            for word in words
        }

    def positive(self, text: str) -> bool:
        """Whether a text is rather positive."""
        return sum(self.evidence.get(word, 0.0) for word in set(text.split())) > 0
