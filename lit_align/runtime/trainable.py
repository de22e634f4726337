"""Checkpoints that hold what training changed, and nothing that the base model already has."""

from collections.abc import Mapping
from typing import Any

import lightning as L


def saved_names(module: L.LightningModule, extra: frozenset[str] = frozenset()) -> frozenset[str]:
    """Names in the state dict that belong in a checkpoint.

    Trainable parameters, the module's own buffers (counters), and ``extra``.
    """
    trainable = {name for name, p in module.named_parameters() if p.requires_grad}
    own = {name for name, _ in module.named_buffers(recurse=False)}
    return frozenset(trainable | own | extra)


def keep_saved(checkpoint: dict[str, Any], names: frozenset[str]) -> None:
    """Drop everything but ``names`` from the checkpoint's weights, in place."""
    checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in names}


def check_saved(state: Mapping[str, Any], names: frozenset[str]) -> None:
    """Refuse weights that do not belong to this module.

    The base model is not in the file, so the file is loaded leniently; a missing adapter would then
    go unnoticed.

    Raises:
        ValueError: listing what is missing and what is foreign.
    """
    missing, foreign = sorted(names - state.keys()), sorted(state.keys() - names)
    if missing or foreign:
        raise ValueError(
            "the checkpoint does not belong to this model: "
            f"missing {_shorten(missing)}; foreign {_shorten(foreign)}. "
            "Give the policy, LoRA and reference that it was trained with."
        )


def check_base(saved: Mapping[str, Any] | None, path: str | None, digest: str | None) -> None:
    """Refuse to put trained weights on a base that they were not trained on.

    Args:
        saved: ``path`` and ``digest`` of the checkpoint's base, ``None`` for a checkpoint without.
        path: name of this base.
        digest: of this base, ``None`` where it cannot be told.

    Raises:
        ValueError: it is another.
    """
    if saved and saved["digest"] and digest and saved["digest"] != digest:
        raise ValueError(
            f"the checkpoint was trained on another base: {saved['path'] or 'a model in memory'} "
            f"({saved['digest']}) then, {path or 'a model in memory'} ({digest}) now"
        )


def _shorten(names: list[str]) -> str:
    if not names:
        return "nothing"
    head = ", ".join(names[:5])
    return head if len(names) <= 5 else f"{head} and {len(names) - 5} more"
