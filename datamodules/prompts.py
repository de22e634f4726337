"""Prompts to answer, with all that the data says about them."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, time
from typing import Any

from lit_align.datamodules import columns as read
from lit_align.datamodules.bad_rows import BadRow, OnBadRow, shown
from lit_align.datamodules.base import AlignDataModule
from lit_align.datamodules.chat import ChatRenderer
from lit_align.datamodules.options import (
    BatchOptions,
    Source,
    SourceOptions,
    Tokenizer,
    TokenOptions,
    Truncation,
)
from lit_align.datamodules.sources import Record
from lit_align.datamodules.supervised import conversation
from lit_align.datamodules.tokenize import Draft, Encoder

#: The columns that make a row, the most telling first.
_FORMATS = (("prompt",), ("messages",), ("conversations",))


class PromptDataModule(AlignDataModule):
    """Prompts without completions, for training on what the policy answers.

    A row has ``prompt`` (text, which is continued as it stands, or a list of messages), or ``messages`` (or
    ShareGPT's ``conversations``) whose last turn is the user's. Messages go through the chat template, up
    to where the assistant begins. Besides, if there: ``tools`` and ``chat_template_kwargs`` (for the chat
    template; structures or their JSON). Every column of the row goes along, whatever its name, as
    ``batch.records``: reward functions take from there what they need (``answer``, ``topic``).

    A training batch is given as many times in a row as the module takes steps on the answers to it
    (``steps_per_rollout`` of the trainer's module; once where it has none), so that every step has its
    batch. Batches of validation, test and prediction are given once.

    Args:
        train: rows to train on: a Hub name (``org/name``, ``org/name/configuration``, ``org/name:split``), a
            shipped one (``lit-align/manners-prompts``), a JSONL, JSON, CSV or Parquet file (``.gz`` too), a
            directory of them, a ``datasets.Dataset``, a list of rows, a list of sources, or a mapping from
            source to its share of an epoch.
        val: held-out rows, given like ``train``; where it is not given and ``train`` is a shipped data set,
            the validation split of that.
        test: rows of ``trainer.test``.
        predict: rows of ``trainer.predict``; those of ``val`` where it is not given.
        val_fraction: hold out this fraction of ``train`` instead of giving ``val``; chosen by content, all
            rows of a prompt on one side.
        columns: our column names to the file's, those that reward functions ask for too:
            ``{prompt: question, answer: solution}``.
        tokenizer: a name, a path, or a tokenizer; that of the trainer's module where it is not given.
        chat_template: Jinja text or a file, instead of the tokenizer's own.
        max_prompt_length: longest prompt in tokens; ``None`` for no limit.
        truncation: which end of a longer prompt stays.
        on_bad_row: ``error`` stops at a row that cannot be used, ``drop`` and ``warn`` leave it out.
        batch_size: prompts per batch and process.
        eval_batch_size: the same for validation, test and prediction; ``batch_size`` where not given.
        batch_tokens: tokens of prompts per batch instead of rows; a longer prompt is a batch of its own.
        length_bucketing: batches of prompts of similar length.
        shuffle: another order of ``train`` each epoch.
        drop_last: leave out an incomplete last training batch.
        num_workers: processes that make batches.
        pin_memory: put batches in page-locked memory.
        seed: of the order, and of the rows held out.
        limit: use only so many rows of each source.
        streaming: tokenise while training, for sources too long to read first; no exact resume.
        shuffle_buffer: rows among which a stream draws the next.
        cache: keep tokens on disk, by content (``LIT_ALIGN_CACHE``, else ``~/.cache/lit-align``).
    """

    def __init__(
        self,
        train: Source | None = None,
        val: Source | None = None,
        test: Source | None = None,
        predict: Source | None = None,
        val_fraction: float = 0.0,
        columns: dict[str, str] | None = None,
        tokenizer: Tokenizer | None = None,
        chat_template: str | None = None,
        max_prompt_length: int | None = 1024,
        truncation: Truncation = "keep_end",
        on_bad_row: OnBadRow = "error",
        batch_size: int = 8,
        eval_batch_size: int | None = None,
        batch_tokens: int | None = None,
        length_bucketing: bool = False,
        shuffle: bool = True,
        drop_last: bool = False,
        num_workers: int = 0,
        pin_memory: bool = False,
        seed: int = 0,
        limit: int | None = None,
        streaming: bool = False,
        shuffle_buffer: int = 1000,
        cache: bool = True,
    ) -> None:
        super().__init__(
            SourceOptions(
                train, val, test, predict, val_fraction, columns or {}, limit, streaming, shuffle_buffer
            ),
            TokenOptions(
                tokenizer,
                chat_template,
                max_length=None,
                max_prompt_length=max_prompt_length,
                truncation=truncation,
                on_bad_row=on_bad_row,
                cache=cache,
            ),
            BatchOptions(
                batch_size,
                eval_batch_size,
                batch_tokens,
                length_bucketing,
                shuffle,
                drop_last,
                seed,
                num_workers=num_workers,
                pin_memory=pin_memory,
            ),
        )

    def drafter(self, encoder: Encoder, renderer: ChatRenderer) -> "PromptDrafter":
        """What turns a record into one prompt."""
        return PromptDrafter(renderer, dict(self.sources.columns))

    def repeats(self) -> int:
        """Steps that the trainer's module takes on the answers to one batch."""
        module = self.trainer.lightning_module if self.trainer else None
        return int(getattr(module, "steps_per_rollout", 1))


@dataclass
class PromptDrafter:
    """One record to one prompt without completions.

    Attributes:
        renderer: conversations to text.
        columns: our names to the file's.
    """

    renderer: ChatRenderer
    columns: dict[str, str]
    _format: tuple[str, ...] | None = field(default=None, init=False)

    def options(self) -> dict[str, Any]:
        """Settings that shape a draft."""
        return {
            "drafter": type(self).__name__,
            "template": self.renderer.template,
            "columns": self.columns,
        }

    def __call__(self, record: Record, counts: Counter[str]) -> Draft | None:
        """Draft one row."""
        record = read.rename(record, self.columns)
        if self._format is None:
            self._format = read.choose_format(record, _FORMATS)
        (column,) = self._format
        value = read.present(record, column)
        plain = column == "prompt" and not read.is_messages(value)
        prompt = _text(record) if plain else self._rendered(record, column)
        return Draft(record.row, record.where, prompt, (), plain, {}, _as_json(record))

    def _rendered(self, record: Record, column: str) -> str:
        messages = read.messages(record, column)
        if messages[-1]["role"] == "assistant":
            raise BadRow(
                record.where,
                f"column {column!r}: the last turn is the assistant's, so there is nothing to answer; a "
                "prompt ends with the user's turn, or with a tool's. (Conversations to imitate are for "
                "SupervisedDataModule)",
            )
        return self.renderer.render(conversation(record, messages), messages, prompt=True)


def _text(record: Record) -> str:
    text = read.text(record, "prompt")
    if not text:
        raise BadRow(record.where, "column 'prompt': expected text to continue, found ''")
    return text


def _as_json(record: Record) -> str:
    """All columns of a row, to be given back as they were read."""
    try:
        return json.dumps(dict(record.values), default=_plain, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise BadRow(record.where, f"not all columns can go along with the prompt: {error}") from error


def _plain(value: Any) -> Any:
    """What JSON does not know, and data sets hold: arrays, NumPy's numbers, dates."""
    if callable(tolist := getattr(value, "tolist", None)):
        return tolist()
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"expected text, numbers, lists or mappings, found {shown(value)}; leave the column out")
