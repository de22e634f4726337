"""A model and its tokenizer for the commands that only use them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lit_align.models.config import ModelConfig
from lit_align.models.sources import resolve


def load_generator(
    path: str,
    *,
    dtype: str = "auto",
    adapters: Sequence[str] = (),
    trust_remote_code: bool = False,
) -> tuple[Any, Any]:
    """A causal language model in evaluation mode, on the best device there is, and its tokenizer.

    Args:
        path: directory, Hub name or shipped name; a directory with adapters is loaded on its base.
        dtype: of the weights; ``auto`` is the checkpoint's own.
        adapters: further LoRA adapters, each folded into the weights in its turn.
        trust_remote_code: run code that comes with the model.

    Raises:
        ValueError: the directory holds a classifier, which cannot write text.
    """
    from lit_align.cli.quiet import quieten
    from lit_align.models.build import build_causal_lm
    from lit_align.models.tokenizers import load_tokenizer

    quieten()
    config = ModelConfig(path=path, dtype=dtype, trust_remote_code=trust_remote_code)
    source = resolve(path)
    _refuse_classifier(path, Path(source))
    chain = list(adapters)
    base = adapter_base(Path(source))
    if base is not None:
        chain.insert(0, source)
        config = ModelConfig(path=base, dtype=dtype, trust_remote_code=trust_remote_code)
    model = build_causal_lm(config)
    for adapter in chain:
        model = _fold(model, adapter)
    has_own = any((Path(source) / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json"))
    tokenizer = load_tokenizer(source if has_own else config.path, trust_remote_code=trust_remote_code)
    return model.eval().to(best_device()), tokenizer


def adapter_base(directory: Path) -> str | None:
    """What the adapters in a directory belong on; ``None`` if there are no adapters in it."""
    description = directory / "adapter_config.json"
    if not description.is_file():
        return None
    base = json.loads(description.read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not base:
        raise ValueError(f"{description} does not say which model it belongs on (base_model_name_or_path)")
    return str(base)


def best_device() -> str:
    """``cuda``, ``mps`` or ``cpu``, in this order."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _fold(model: Any, adapter: str) -> Any:
    from peft import PeftModel

    return PeftModel.from_pretrained(model, resolve(adapter)).merge_and_unload()


def _refuse_classifier(name: str, directory: Path) -> None:
    for file in ("adapter_config.json", "config.json"):
        path = directory / file
        if not path.is_file():
            continue
        content = json.loads(path.read_text(encoding="utf-8"))
        kinds = [*(content.get("architectures") or []), str(content.get("task_type"))]
        if any("SequenceClassification" in kind or kind == "SEQ_CLS" for kind in kinds):
            raise ValueError(f"{name} is a classifier (a reward model): it scores text and cannot write any")
