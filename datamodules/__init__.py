"""Supervised rows, preference pairs and prompts as LightningDataModules.

All yield the ragged batch of `lit_align.batches`, tokenise once, and work with any LightningModule.
"""

from lit_align.datamodules.base import AlignDataModule
from lit_align.datamodules.collate import PaddedCollator, collate
from lit_align.datamodules.pairs import PreferenceDataModule
from lit_align.datamodules.prompts import PromptDataModule
from lit_align.datamodules.supervised import SupervisedDataModule

__all__ = [
    "AlignDataModule",
    "PaddedCollator",
    "PreferenceDataModule",
    "PromptDataModule",
    "SupervisedDataModule",
    "collate",
]
