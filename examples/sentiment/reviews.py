"""Reviews with their sentiment, and a tokenizer for them."""

import gzip
import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

HOW_TO_GET_DATA = """no reviews: give --data FILE, JSONL (.gz too) of {"text": ..., "label": 0 or 1}, such as
    python -c "import datasets; datasets.load_dataset('cornell-movie-review-data/rotten_tomatoes', \
split='train').to_json('reviews.jsonl')"
"""


def read(path: Path) -> list[dict[str, Any]]:
    """Rows with ``text`` and ``label`` (1 is positive)."""
    content = path.read_bytes()
    text = gzip.decompress(content) if path.suffix == ".gz" else content
    return [json.loads(line) for line in text.splitlines()]


def split(rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Every tenth row is held out."""
    return [row for i, row in enumerate(rows) if i % 10], rows[::10]


def train_tokenizer(texts: list[str], size: int = 2048) -> PreTrainedTokenizerFast:
    """Byte-level BPE with the vocabulary of these texts. A text begins with its begin token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        show_progress=False,
        special_tokens=["<pad>", "<begin>", "<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<begin> $A", pair="<begin> $A $B", special_tokens=[("<begin>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<begin>", eos_token="<end>", pad_token="<pad>"
    )
