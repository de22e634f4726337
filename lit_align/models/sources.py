"""Where a model lies, and whether what was loaded is all of it."""

import difflib
import json
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lit_align.models.config import ModelConfig
from lit_align.shipped import find

logger = logging.getLogger(__name__)

_WEIGHTS = (
    "*.safetensors",
    "*.safetensors.index.json",
    "pytorch_model*.bin",
    "pytorch_model*.bin.index.json",
)


def resolve(path: str) -> str:
    """A shipped name, a directory or a Hub name, as what ``from_pretrained`` takes.

    Raises:
        ValueError: ``path`` is a directory by the look of it, and is not there.
    """
    shipped = find(path)
    if shipped is not None:
        return str(shipped)
    place = Path(path).expanduser()
    if place.exists():
        return str(place)
    if path.startswith(("/", "./", "../", "~")) or path.count("/") > 1 or "\\" in path:
        parent = place.parent
        beside = [p.name for p in parent.iterdir()] if parent.is_dir() else []
        close = difflib.get_close_matches(place.name, beside, n=1)
        hint = f"; did you mean {parent / close[0]}?" if close else ""
        raise ValueError(f"no directory {place} (from {path!r}){hint}")
    return path


def locate(config: ModelConfig, needs_weights: bool) -> str:
    """The place of a model, after a look at whether it can be built from there.

    Args:
        config: the description; ``path`` is set.
        needs_weights: whether weights must be there.

    Raises:
        ValueError: the directory holds an adapter, no ``config.json``, or no weights.
    """
    path = resolve(config.path)
    directory = Path(path)
    if not directory.is_dir():
        if directory.is_file():
            raise ValueError(f"{path} is a file; a model is a directory with config.json and weights")
        return path
    if not (directory / "config.json").is_file():
        adapter = directory / "adapter_config.json"
        if adapter.is_file():
            base = json.loads(adapter.read_text()).get("base_model_name_or_path") or "<its base model>"
            raise ValueError(
                f"{path} holds an adapter, not a model: set path to {base} and adapter to {path}, "
                "or export it merged"
            )
        raise ValueError(f"{path} has no config.json, so it is no model directory")
    if needs_weights and not any(True for pattern in _WEIGHTS for _ in directory.glob(pattern)):
        raise ValueError(
            f"{path} has a config.json but no weights (*.safetensors). To start from random weights, "
            "set from_scratch: true (--model.policy.from_scratch true)"
        )
    return path


@contextmanager
def named(path: str) -> Iterator[None]:
    """Say which model could not be had, which the library's own error may leave out.

    Raises:
        ValueError: in place of an ``OSError``.
    """
    try:
        yield
    except OSError as error:
        raise ValueError(f"the model {path} could not be loaded: {error}") from error


def check_loaded(report: Any, path: str, model: str, heads: tuple[str, ...]) -> list[str]:
    """Judge what ``from_pretrained`` reports.

    transformers fills weights that the checkpoint lacks with random numbers and says so in a table; training
    or judging with a random layer in the middle is never what was meant.

    Args:
        report: ``missing_keys``, ``unexpected_keys`` and ``mismatched_keys``.
        path: where the checkpoint lies.
        model: class of the model.
        heads: names of heads that may be missing.

    Returns:
        Weights of the head that were drawn fresh.
    """
    missing = sorted(report["missing_keys"])
    fresh = [key for key in missing if key.split(".")[0] in heads]
    lost = [key for key in missing if key not in fresh]
    if lost:
        raise ValueError(
            f"{path} lacks {len(lost)} weights that {model} needs: {_some(lost)}. {_advice(heads)}"
        )
    if report["mismatched_keys"]:
        wrong = [
            f"{name} is {list(found)}, not {list(wanted)}"
            for name, found, wanted in sorted(report["mismatched_keys"])
        ]
        raise ValueError(f"{path} has weights of another shape than {model}: {_some(wrong)}")
    # A language model's output layer is not needed under a reward head, nor the other way round.
    spare = [k for k in sorted(report["unexpected_keys"]) if k.split(".")[0] not in ("lm_head", *heads)]
    if spare:
        logger.warning("%s has %d weights that %s does not use: %s", path, len(spare), model, _some(spare))
    return fresh


def _advice(heads: tuple[str, ...]) -> str:
    if heads:
        return "Is it a checkpoint of a decoder that transformers can use as a sequence classifier?"
    return "Is it a checkpoint of a causal language model, and not a classifier or an encoder?"


def _some(names: Iterable[str], limit: int = 4) -> str:
    listed = list(names)
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + more
