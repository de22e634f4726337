"""Callbacks for any Lightning project; imported as ``lit_align.callbacks``."""

from lit_align.callbacks.endpoint_judge import EndpointJudge as EndpointJudge
from lit_align.callbacks.exact_resume import ExactResume as ExactResume
from lit_align.callbacks.export_hf import ExportHF as ExportHF
from lit_align.callbacks.generation_samples import GenerationSamples as GenerationSamples
from lit_align.callbacks.judges import RewardJudge as RewardJudge
from lit_align.callbacks.kl_tracker import KLTracker as KLTracker
from lit_align.callbacks.merge_adapters import MergeAdapters as MergeAdapters
from lit_align.callbacks.merge_models import MergeModels as MergeModels
from lit_align.callbacks.nan_guard import NanGuard as NanGuard
from lit_align.callbacks.prediction_writer import PredictionWriter as PredictionWriter
from lit_align.callbacks.preemption import Preemption as Preemption
from lit_align.callbacks.progress_lines import ProgressLines as ProgressLines
from lit_align.callbacks.rich_progress import RichProgress as RichProgress
from lit_align.callbacks.sentinel import Sentinel as Sentinel
from lit_align.callbacks.sync_reference import SyncReference as SyncReference
from lit_align.callbacks.throughput import Throughput as Throughput
from lit_align.callbacks.weight_average import WeightAverage as WeightAverage
from lit_align.callbacks.win_rate import WinRate as WinRate

__all__ = [
    "EndpointJudge",
    "ExactResume",
    "ExportHF",
    "GenerationSamples",
    "KLTracker",
    "MergeAdapters",
    "MergeModels",
    "NanGuard",
    "PredictionWriter",
    "Preemption",
    "ProgressLines",
    "RewardJudge",
    "RichProgress",
    "Sentinel",
    "SyncReference",
    "Throughput",
    "WeightAverage",
    "WinRate",
]
