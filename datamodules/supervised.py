"""Rows to imitate: text, a prompt with its completion, or a conversation."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from lit_align.datamodules import columns as read
from lit_align.datamodules.bad_rows import BadRow, OnBadRow
from lit_align.datamodules.base import AlignDataModule
from lit_align.datamodules.chat import ChatRenderer, Conversation
from lit_align.datamodules.options import (
    BatchOptions,
    Layout,
    Source,
    SourceOptions,
    Tokenizer,
    TokenOptions,
    Truncation,
)
from lit_align.datamodules.sources import Record
from lit_align.datamodules.tokenize import Draft, Encoder

#: The columns that make a row, the most telling first.
_FORMATS = (("messages",), ("conversations",), ("prompt", "completion"), ("text",))
_KNOWN = (
    "messages",
    "conversations",
    "prompt",
    "completion",
    "text",
    "weight",
    "tools",
    "chat_template_kwargs",
)


class SupervisedDataModule(AlignDataModule):
    """Supervised rows: one prompt with one completion each.

    A row has one of these sets of columns, found by their names:

    - ``messages`` (or ShareGPT's ``conversations``): a conversation. The assistant's turns are learned; a
      message may carry ``train: false`` or a ``weight``.
    - ``prompt`` and ``completion``: strings, or lists of messages. Of message lists the assistant's turns in
      the completion are learned.
    - ``text``: language modelling. The prompt is empty, all tokens but the first are learned.

    Besides, if there: ``weight`` (a number for the whole row), ``tools`` and ``chat_template_kwargs`` (for
    the chat template; structures or their JSON).

    Args:
        train: rows to train on: a Hub name (``org/name``, ``org/name/configuration``, ``org/name:split``), a
            shipped one (``lit-align/manners-sft``), a JSONL, JSON, CSV or Parquet file (``.gz`` too), a
            directory of them, a ``datasets.Dataset``, a list of rows, a list of sources, or a mapping from
            source to its share of an epoch.
        val: held-out rows, given like ``train``; where it is not given and ``train`` is a shipped data set,
            the validation split of that.
        test: rows of ``trainer.test``.
        predict: rows of ``trainer.predict``; those of ``val`` where it is not given.
        val_fraction: hold out this fraction of ``train`` instead of giving ``val``; chosen by content.
        columns: our column names to the file's: ``{prompt: question, completion: answer}``.
        tokenizer: a name, a path, or a tokenizer; that of the trainer's module where it is not given.
        chat_template: Jinja text or a file, instead of the tokenizer's own.
        completion_only: learn the completion alone; ``False`` learns the prompt too.
        max_length: longest sequence in tokens; completions lose their end, and then have no EOS.
        max_prompt_length: longest prompt in tokens; no limit of its own where it is not given.
        truncation: which end of a prompt stays.
        allow_dropped: fraction of the rows that may be lost because truncation leaves nothing to learn.
        on_bad_row: ``error`` stops at a row that cannot be used, ``drop`` and ``warn`` leave it out.
        batch_size: rows per batch and process.
        eval_batch_size: the same for validation, test and prediction; ``batch_size`` where not given.
        batch_tokens: tokens per batch instead of rows; a longer row is a batch of its own.
        length_bucketing: batches of rows of similar length.
        shuffle: another order of ``train`` each epoch.
        drop_last: leave out an incomplete last training batch.
        layout: ``ragged`` yields `lit_align.batches.Forest`, ``padded`` dictionaries of rectangles.
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
        completion_only: bool = True,
        max_length: int | None = 1024,
        max_prompt_length: int | None = None,
        truncation: Truncation = "keep_end",
        allow_dropped: float = 0.01,
        on_bad_row: OnBadRow = "error",
        batch_size: int = 8,
        eval_batch_size: int | None = None,
        batch_tokens: int | None = None,
        length_bucketing: bool = False,
        shuffle: bool = True,
        drop_last: bool = False,
        layout: Layout = "ragged",
        num_workers: int = 0,
        pin_memory: bool = False,
        seed: int = 0,
        limit: int | None = None,
        streaming: bool = False,
        shuffle_buffer: int = 1000,
        cache: bool = True,
    ) -> None:
        read.check_mapping(columns or {}, _KNOWN)
        self.completion_only = completion_only
        super().__init__(
            SourceOptions(
                train, val, test, predict, val_fraction, columns or {}, limit, streaming, shuffle_buffer
            ),
            TokenOptions(
                tokenizer,
                chat_template,
                max_length,
                max_prompt_length,
                truncation,
                allow_dropped,
                on_bad_row,
                cache,
            ),
            BatchOptions(
                batch_size,
                eval_batch_size,
                batch_tokens,
                length_bucketing,
                shuffle,
                drop_last,
                seed,
                layout,
                num_workers,
                pin_memory,
            ),
        )

    def drafter(self, encoder: Encoder, renderer: ChatRenderer) -> "SupervisedDrafter":
        """What turns a record into one prompt with one completion."""
        return SupervisedDrafter(renderer, dict(self.sources.columns), self.completion_only)


@dataclass
class SupervisedDrafter:
    """One record to one prompt with one completion.

    Attributes:
        renderer: conversations to text.
        columns: our names to the file's.
        completion_only: leave the prompt's tokens without weight.
    """

    renderer: ChatRenderer
    columns: dict[str, str]
    completion_only: bool
    _format: tuple[str, ...] | None = field(default=None, init=False)

    def options(self) -> dict[str, Any]:
        """Settings that shape a draft."""
        return {
            "drafter": type(self).__name__,
            "template": self.renderer.template,
            "columns": self.columns,
            "completion_only": self.completion_only,
        }

    def __call__(self, record: Record, counts: Counter[str]) -> Draft | None:
        """Draft one row."""
        record = read.rename(record, self.columns)
        if self._format is None:
            self._format = read.choose_format(record, _FORMATS)
        factor = read.number(record, "weight") if record.values.get("weight") is not None else 1.0
        if factor < 0:
            raise BadRow(record.where, f"column 'weight': expected a number of at least 0, found {factor}")
        prompt, pieces, plain = self._parts(record, self._format)
        pieces = [(text, weight * factor) for text, weight in pieces]
        if not self.completion_only and prompt:
            prompt, pieces = "", [(prompt, factor), *pieces]
        return Draft(record.row, record.where, prompt, (tuple(pieces),), plain, {})

    def _parts(self, record: Record, form: tuple[str, ...]) -> tuple[str, list[tuple[str, float]], bool]:
        """Prompt, pieces with weights, and whether they are plain text."""
        if form == ("text",):
            return "", [(_not_empty(record, "text"), 1.0)], True
        if form in (("messages",), ("conversations",)):
            return *self.renderer.pieces(conversation(record, read.messages(record, form[0]))), False
        prompt, completion = read.present(record, "prompt"), read.present(record, "completion")
        if not read.is_messages(prompt) and not read.is_messages(completion):
            return read.text(record, "prompt"), [(_not_empty(record, "completion"), 1.0)], True
        before = prompt_messages(record)
        after = reply_messages(record, "completion")
        return *self.renderer.pieces(conversation(record, before + after), first=len(before)), False


def conversation(record: Record, messages: list[read.Message]) -> Conversation:
    """Messages with the template's columns of their row."""
    return Conversation(
        record.where,
        messages,
        read.structure(record, "tools", list),
        read.structure(record, "chat_template_kwargs", dict),
    )


def prompt_messages(record: Record) -> list[read.Message]:
    """The prompt as messages; a string is what the user says."""
    if isinstance(record.values.get("prompt"), str):
        return [{"role": "user", "content": record.values["prompt"]}]
    return read.messages(record, "prompt")


def reply_messages(record: Record, column: str) -> list[read.Message]:
    """A completion as messages; a string is what the assistant says."""
    if isinstance(record.values.get(column), str):
        return [{"role": "assistant", "content": record.values[column]}]
    return read.messages(record, column)


def _not_empty(record: Record, column: str) -> str:
    text = read.text(record, column)
    if not text.strip():
        raise BadRow(record.where, f"column {column!r}: expected text to learn, found {text!r}")
    return text
