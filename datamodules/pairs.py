"""Preference pairs: one prompt with a chosen and a rejected completion."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal

from lit_align.datamodules import columns as read
from lit_align.datamodules.bad_rows import BadRow, OnBadRow, shown
from lit_align.datamodules.base import AlignDataModule
from lit_align.datamodules.chat import ChatRenderer
from lit_align.datamodules.options import (
    BatchOptions,
    Layout,
    Source,
    SourceOptions,
    Tokenizer,
    TokenOptions,
    Truncation,
    choose,
)
from lit_align.datamodules.preference import common_messages, common_text
from lit_align.datamodules.sources import Record
from lit_align.datamodules.supervised import conversation, prompt_messages, reply_messages
from lit_align.datamodules.tokenize import Draft, Encoder

Rule = Literal["drop", "keep", "error"]
_KNOWN = ("prompt", "chosen", "rejected", "margin", "tools", "chat_template_kwargs")
Pieces = list[tuple[str, float]]


class PreferenceDataModule(AlignDataModule):
    r"""Preference pairs: one prompt with two completions each, the chosen one first.

    A row has the columns ``chosen`` and ``rejected``, strings or lists of messages, and may have ``prompt``.
    Without a prompt, that is what both begin with: messages up to the reply, or text up to a place where
    words of both begin and no token lies across (`lit_align.datamodules.preference`). Besides, if there:
    ``margin`` (a number, which becomes ``prompt_columns["margin"]``), ``tools`` and ``chat_template_kwargs``.

    Args:
        train: rows to train on: a Hub name (``org/name``, ``org/name/configuration``, ``org/name:split``), a
            shipped one (``lit-align/manners-pairs``), a JSONL, JSON, CSV or Parquet file (``.gz`` too), a
            directory of them, a ``datasets.Dataset``, a list of rows, a list of sources, or a mapping from
            source to its share of an epoch.
        val: held-out rows, given like ``train``; where it is not given and ``train`` is a shipped data set,
            the validation split of that.
        test: rows of ``trainer.test``.
        predict: rows of ``trainer.predict``; those of ``val`` where it is not given.
        val_fraction: hold out this fraction of ``train`` instead of giving ``val``; chosen by content, all
            pairs of a prompt on one side.
        columns: our column names to the file's: ``{chosen: good, rejected: bad}``.
        tokenizer: a name, a path, or a tokenizer; that of the trainer's module where it is not given.
        chat_template: Jinja text or a file, instead of the tokenizer's own.
        prompt_end: text that ends every prompt, for texts without a prompt column: ``"\n\nAssistant:"``.
        on_identical: what to do about pairs of equal completions, which carry no signal.
        on_empty: what to do about pairs with an empty completion; ``keep`` leaves it its EOS.
        max_length: longest sequence in tokens; completions lose their end, and then have no EOS.
        max_prompt_length: longest prompt in tokens; no limit of its own where it is not given.
        truncation: which end of a prompt stays.
        allow_dropped: fraction of the rows that may be lost because truncation leaves nothing to learn.
        on_bad_row: ``error`` stops at a row that cannot be used, ``drop`` and ``warn`` leave it out.
        batch_size: pairs per batch and process.
        eval_batch_size: the same for validation, test and prediction; ``batch_size`` where not given.
        batch_tokens: tokens per batch instead of rows, both completions counted with the prompt; a longer
            row is a batch of its own.
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
        prompt_end: str | None = None,
        on_identical: Rule = "drop",
        on_empty: Rule = "drop",
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
        choose("on_identical", on_identical, ("drop", "keep", "error"))
        choose("on_empty", on_empty, ("drop", "keep", "error"))
        self.prompt_end = prompt_end
        self.on_identical = on_identical
        self.on_empty = on_empty
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

    def drafter(self, encoder: Encoder, renderer: ChatRenderer) -> "PairDrafter":
        """What turns a record into one prompt with two completions."""
        rules = {"identical": self.on_identical, "empty": self.on_empty}
        return PairDrafter(renderer, encoder, dict(self.sources.columns), self.prompt_end, rules)


@dataclass
class PairDrafter:
    """One record to one prompt with two completions.

    Attributes:
        renderer: conversations to text.
        encoder: asked where the common beginning of two texts can be cut.
        columns: our names to the file's.
        prompt_end: text that ends every prompt.
        rules: what to do about ``identical`` and ``empty`` completions.
    """

    renderer: ChatRenderer
    encoder: Encoder
    columns: dict[str, str]
    prompt_end: str | None
    rules: dict[str, Rule]
    _margin: bool | None = field(default=None, init=False)

    def options(self) -> dict[str, Any]:
        """Settings that shape a draft."""
        return {
            "drafter": type(self).__name__,
            "template": self.renderer.template,
            "columns": self.columns,
            "prompt_end": self.prompt_end,
            "rules": self.rules,
        }

    def __call__(self, record: Record, counts: Counter[str]) -> Draft | None:
        """Draft one pair, or count it under ``identical_pairs`` or ``empty_completions``."""
        record = read.rename(record, self.columns)
        read.choose_format(record, [("chosen", "rejected")])
        if self._margin is None:
            self._margin = "margin" in record.values
        margin = {"margin": read.number(record, "margin")} if self._margin else {}
        chosen, rejected = read.present(record, "chosen"), read.present(record, "rejected")
        if chosen == rejected and not self._keeps(record, "identical", "chosen and rejected are equal"):
            counts["identical_pairs"] += 1
            return None
        plain = not any(read.is_messages(value) for value in (chosen, rejected, record.values.get("prompt")))
        prompt, completions, empty = self._of_text(record) if plain else self._of_messages(record)
        if empty and not self._keeps(record, "empty", "a completion is empty"):
            counts["empty_completions"] += 1
            return None
        return Draft(record.row, record.where, prompt, tuple(map(tuple, completions)), plain, margin)

    def _of_text(self, record: Record) -> tuple[str, list[Pieces], bool]:
        """Prompt, two completions, and whether one of these is empty."""
        chosen, rejected = read.text(record, "chosen"), read.text(record, "rejected")
        if "prompt" in record.values:
            prompt = read.text(record, "prompt")
            texts = [chosen, rejected]
        else:
            at = common_text(chosen, rejected, self.encoder, self.prompt_end)
            prompt, texts = chosen[:at], [chosen[at:], rejected[at:]]
        return prompt, [[(text, 1.0)] for text in texts], not all(text.strip() for text in texts)

    def _of_messages(self, record: Record) -> tuple[str, list[Pieces], bool]:
        """The same of conversations."""
        chosen, rejected = reply_messages(record, "chosen"), reply_messages(record, "rejected")
        before = self._prompt(record, chosen)
        if before is None:
            shared = common_messages(chosen, rejected)
            before = chosen[:shared]
        prompts, completions, said = [], [], []
        for messages in (chosen, rejected):
            after = messages[len(before) :] if messages[: len(before)] == before else messages
            prompt, pieces = self.renderer.pieces(conversation(record, before + after), first=len(before))
            prompts.append(prompt)
            completions.append(pieces)
            said.append(
                any(m["content"].strip() or m.get("tool_calls") for m in after if m["role"] == "assistant")
            )
        if prompts[0] != prompts[1]:
            raise BadRow(
                record.where,
                "the chat template renders the prompt differently before chosen and before rejected: "
                f"{shown(prompts[0][-60:])} and {shown(prompts[1][-60:])}",
            )
        return prompts[0], completions, not all(said)

    def _prompt(self, record: Record, chosen: list[read.Message]) -> list[read.Message] | None:
        """The prompt that the row names; ``None`` where it is what chosen and rejected begin with."""
        value = record.values.get("prompt")
        if value is None and "prompt" not in record.values:
            return None
        if isinstance(value, str) and any(m["role"] == "user" and m["content"] == value for m in chosen):
            # The prompt's text stands beside conversations that contain it.
            return None
        return prompt_messages(record)

    def _keeps(self, record: Record, what: str, problem: str) -> bool:
        rule = self.rules[what]
        if rule == "error":
            raise BadRow(
                record.where, f"columns 'chosen' and 'rejected': {problem} (on_{what}: drop or keep)"
            )
        return rule == "keep"
