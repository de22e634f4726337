"""Hyper-parameters as plain data, so that a checkpoint loads without running anyone's code."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from lit_align.scoring.references import Reference


def plain_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What ``locals()`` holds at the top of ``__init__``, as plain data.

    An object that has no plain form (a module in memory, a function) becomes ``None`` and has to be
    given again when the checkpoint is loaded by hand.
    """
    return {k: _plain(v) for k, v in arguments.items() if k != "self" and not k.startswith("__")}


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        # Not asdict, which would copy a model that stands in a field.
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Reference):
        return _plain(value.spec())
    return None
