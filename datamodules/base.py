"""What the DataModules share: sources in, tokens cached, batches out."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Literal

import lightning as L
from torch.utils.data import DataLoader

from lit_align.datamodules.bad_rows import DataError
from lit_align.datamodules.build import Drafter, Pipeline, log_report
from lit_align.datamodules.cache import TokenCache, cache_folder
from lit_align.datamodules.chat import ChatRenderer
from lit_align.datamodules.collate import PaddedCollator, collate
from lit_align.datamodules.loading import Split, load_split, row_loader, stream_loader
from lit_align.datamodules.options import BatchOptions, Source, SourceOptions, TokenOptions
from lit_align.datamodules.sampling import BatchOrder
from lit_align.datamodules.sources import validation_of
from lit_align.datamodules.tokenize import Encoder
from lit_align.datamodules.tokenizers import load_tokenizer, module_tokenizer, pad_id, read_template
from lit_align.datamodules.truncation import Limits

_SPLITS = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("predict",)}


class AlignDataModule(L.LightningDataModule):
    """Base of the DataModules: a subclass says how one row becomes text (`drafter`).

    Attributes:
        report: for each split, what became of its rows: ``rows_read``, ``rows_kept``, ``tokens``,
            ``bad_rows``, ``truncated_prompts``, ``truncated_completions``, ``lost_to_truncation`` and what
            the subclass counts.
        train_order: the order of the training batches, once there is a train loader.
    """

    def __init__(self, sources: SourceOptions, tokens: TokenOptions, batches: BatchOptions) -> None:
        super().__init__()
        self.sources = sources
        self.tokens = tokens
        self.batches = batches
        self.report: dict[str, dict[str, int]] = {}
        self.train_order: BatchOrder | None = None
        self._splits: dict[str, Split] = {}
        self._own_tokenizer = tokens.tokenizer
        self._cache = TokenCache(cache_folder() if tokens.cache else None)

    @abstractmethod
    def drafter(self, encoder: Encoder, renderer: ChatRenderer) -> Drafter:
        """What turns a record into text; called anew for each source."""

    def repeats(self) -> int:
        """How often each training batch is given, the times one after another."""
        return 1

    @property
    def tokenizer(self) -> Any:
        """The own tokenizer, or that of the module in training."""
        if isinstance(self._own_tokenizer, str):
            self._own_tokenizer = load_tokenizer(self._own_tokenizer)
        return self._own_tokenizer or module_tokenizer(self.trainer)

    def prepare_data(self) -> None:
        """Tokenise into the cache, once per machine."""
        stage = self.trainer.state.fn if self.trainer else None
        if self.tokens.cache and not self.sources.streaming:
            self._load(stage.value if stage else "fit")

    def setup(self, stage: str | None = None) -> None:
        """Load what `prepare_data` cached, or tokenise here.

        Args:
            stage: ``fit``, ``validate``, ``test``, ``predict``, or ``None`` for every source there is.

        Raises:
            DataError: no source, rows that cannot be used, nothing left.
        """
        if self.sources.streaming:
            return
        for name, split in self._load(stage).items():
            self._splits[name] = split
            counts = {key: count for key, count in split.counts.items() if count}
            if self.report.get(name) != counts:
                self.report[name] = counts
                log_report(name, split.counts)

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches to train on, shuffled."""
        loader = self._loader("train")
        self.train_order = loader.sampler if isinstance(loader.sampler, BatchOrder) else None
        return loader

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """Held-out batches in the order of the rows, or nothing where no rows are held out."""
        return self._loader("val") if self._source("val") is not None else []

    def test_dataloader(self) -> DataLoader[Any]:
        """Batches of the test source."""
        return self._loader("test")

    def predict_dataloader(self) -> DataLoader[Any]:
        """Batches of the predict source, or of the held-out rows where there is none."""
        return self._loader("predict")

    def _source(self, split: str) -> Source | None:
        sources = self.sources
        if split == "predict" and sources.predict is None:
            split = "val"
        if split == "val" and sources.val_fraction:
            return sources.train
        if split == "val" and sources.val is None:
            return validation_of(sources.train)
        return getattr(sources, split)

    def _part(self, split: str) -> Literal["all", "kept", "held_out"]:
        if not self.sources.val_fraction or split == "test":
            return "all"
        if split == "train":
            return "kept"
        return "all" if split == "predict" and self.sources.predict is not None else "held_out"

    def _load(self, stage: str | None) -> dict[str, Split]:
        names = _SPLITS[stage] if stage else ("train", "val", "test", "predict")
        given = {name: source for name in names if (source := self._source(name)) is not None}
        if names[0] not in given and stage is not None:
            raise DataError(f"{type(self).__name__} has no rows to {stage} with: give {names[0]} a source")
        make, seed = self._pipeline_maker(), self.batches.seed
        return {
            name: load_split(source, self.sources, make, self._cache, self._part(name), seed)
            for name, source in given.items()
        }

    def _pipeline_maker(self) -> Callable[[], Pipeline]:
        options, tokenizer = self.tokens, self.tokenizer
        encoder = Encoder(tokenizer)
        renderer = ChatRenderer(tokenizer, read_template(options.chat_template))
        bos = tokenizer.bos_token_id
        limits = Limits(options.max_length, options.max_prompt_length, options.truncation, bos)
        return lambda: Pipeline(
            self.drafter(encoder, renderer), encoder, limits, options.on_bad_row, options.allow_dropped
        )

    def _loader(self, name: str) -> DataLoader[Any]:
        padded = self.batches.layout == "padded"
        collator = PaddedCollator(pad_id(self.tokenizer)) if padded else collate
        place = getattr(self.trainer, "distributed_sampler_kwargs", None) or {"num_replicas": 1, "rank": 0}
        training = name == "train"
        how: dict[str, Any] = {**place, "training": training, "repeat": self.repeats() if training else 1}
        if not self.sources.streaming:
            return row_loader(self._splits[name], self.batches, collator, **how)
        source = self._source(name)
        if source is None:
            raise DataError(f"{type(self).__name__} has no {name} rows: give {name} a source")
        pipeline = self._pipeline_maker()()
        return stream_loader(source, self.sources, self.batches, pipeline, collator, **how)
