"""Supervised and preference data as LightningDataModules.

Both yield the ragged batch of `lit_align.batches`, tokenise once, and work with any LightningModule.
"""

from lit_align.datamodules.base import AlignDataModule
from lit_align.datamodules.collate import PaddedCollator, collate
from lit_align.datamodules.pairs import PreferenceDataModule
from lit_align.datamodules.supervised import SupervisedDataModule

__all__ = [
    "AlignDataModule",
    "PaddedCollator",
    "PreferenceDataModule",
    "SupervisedDataModule",
    "collate",
]
