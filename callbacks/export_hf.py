"""The trained model as a Hugging Face directory, at the end of a run."""

from pathlib import Path

import lightning as L
from lightning.pytorch.utilities import rank_zero_warn

from lit_align.models.export import critic_parts, save_pretrained_dir
from lit_align.models.sharding import whole_weights


class ExportHF(L.Callback):
    """Write the trained model and its tokenizer when ``fit`` ends.

    Works with any module that keeps its model of transformers (or of peft) as ``policy.model``, or as
    ``model``, and its tokenizer as ``tokenizer``. A value head on the policy (``policy.value_head``) is
    written beside it as ``value_head.safetensors``, and a critic (``critic``, with ``model`` and
    ``value_head``) into the folder ``critic``.

    Args:
        directory: where to; ``export`` in the trainer's directory by default.
        merge: fold adapters into the weights; by default the adapters are written alone.
    """

    def __init__(self, directory: str | Path | None = None, merge: bool = False) -> None:
        self.directory = Path(directory) if directory is not None else None
        self.merge = merge

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the directory, on process zero; all processes wait."""
        model = getattr(getattr(pl_module, "policy", pl_module), "model", None)
        if model is None:
            rank_zero_warn(
                f"{type(pl_module).__name__} has neither policy.model nor model: nothing is exported"
            )
            return
        value_head = getattr(getattr(pl_module, "policy", None), "value_head", None)
        critic = critic_parts(getattr(pl_module, "critic", None))
        # Where weights are sharded, all processes give their part.
        whole = whole_weights([model, value_head, *(critic[:2] if critic else ())])
        if trainer.is_global_zero:
            directory = self.directory or Path(trainer.default_root_dir) / "export"
            has_tokenizer = getattr(pl_module, "has_tokenizer", True)
            tokenizer = getattr(pl_module, "tokenizer", None) if has_tokenizer else None
            save_pretrained_dir(model, tokenizer, directory, self.merge, value_head, critic, whole)
        trainer.strategy.barrier("export")
