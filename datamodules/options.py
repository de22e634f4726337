"""What a user may set on a DataModule, grouped by the part of the work it belongs to. Plain data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from lit_align.datamodules.bad_rows import OnBadRow

#: Where rows come from: a Hub name, a file or a directory, a ``datasets.Dataset``, a list of rows, a
#: list of sources one after another, or a mapping from source to its share of an epoch.
Source = str | list[Any] | dict[str, float] | Any

#: A name or path, or a transformers tokenizer.
Tokenizer = str | Any

Truncation = Literal["keep_start", "keep_end"]
Layout = Literal["ragged", "padded"]


@dataclass(frozen=True)
class SourceOptions:
    """Which rows: see the arguments of the DataModules."""

    train: Source | None = None
    val: Source | None = None
    test: Source | None = None
    predict: Source | None = None
    val_fraction: float = 0.0
    columns: Mapping[str, str] = field(default_factory=dict)
    limit: int | None = None
    streaming: bool = False
    shuffle_buffer: int = 1000

    def __post_init__(self) -> None:
        if not 0 <= self.val_fraction < 1:
            raise ValueError(
                f"val_fraction is a fraction of the train rows in [0, 1), not {self.val_fraction}"
            )
        if self.val_fraction and self.val is not None:
            raise ValueError("give val or val_fraction, not both")
        if self.val_fraction and self.streaming:
            raise ValueError("val_fraction needs all rows at once; with streaming, give val a source")
        for name in ("limit", "shuffle_buffer"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")


@dataclass(frozen=True)
class TokenOptions:
    """How rows become tokens: see the arguments of the DataModules."""

    tokenizer: Tokenizer | None = None
    chat_template: str | None = None
    max_length: int | None = 1024
    max_prompt_length: int | None = None
    truncation: Truncation = "keep_end"
    allow_dropped: float = 0.01
    on_bad_row: OnBadRow = "error"
    cache: bool = True

    def __post_init__(self) -> None:
        for name in ("max_length", "max_prompt_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        if self.max_length and self.max_prompt_length and self.max_prompt_length >= self.max_length:
            raise ValueError(
                f"max_prompt_length={self.max_prompt_length} leaves no room for a completion "
                f"within max_length={self.max_length}"
            )
        choose("truncation", self.truncation, ("keep_start", "keep_end"))
        choose("on_bad_row", self.on_bad_row, ("error", "drop", "warn"))
        if not 0 <= self.allow_dropped <= 1:
            raise ValueError(f"allow_dropped is a fraction in [0, 1], not {self.allow_dropped}")


@dataclass(frozen=True)
class BatchOptions:
    """How tokens become batches: see the arguments of the DataModules."""

    batch_size: int = 8
    eval_batch_size: int | None = None
    batch_tokens: int | None = None
    length_bucketing: bool = False
    shuffle: bool = True
    drop_last: bool = False
    seed: int = 0
    layout: Layout = "ragged"
    num_workers: int = 0
    pin_memory: bool = False

    def __post_init__(self) -> None:
        for name in ("batch_size", "eval_batch_size", "batch_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        choose("layout", self.layout, ("ragged", "padded"))
        if self.drop_last and self.batch_tokens:
            raise ValueError(
                "drop_last belongs to a fixed batch_size; with batch_tokens no batch is incomplete"
            )


def choose(name: str, value: object, allowed: Sequence[str]) -> None:
    """Refuse a value that is none of those allowed."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {value!r}")
