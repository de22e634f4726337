"""Writing a model as a directory that every tool of the Hugging Face world reads."""

import copy
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from lit_align.models.loading import quiet_loading
from lit_align.models.value_head import ValueHead, save_value_head

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


#: Folder of a critic with a model of its own, inside the policy's directory.
CRITIC = "critic"
#: Folders of an export; the second is a tokenizer's.
_FOLDERS = (CRITIC, "additional_chat_templates")


class CriticParts(NamedTuple):
    """What of a critic is written.

    Attributes:
        model: of transformers, with or without adapters; the policy's own where only an adapter differs.
        value_head: on its states.
        adapter: which adapter of the model is the critic's; by default the active one.
    """

    model: nn.Module
    value_head: ValueHead
    adapter: str | None = None


def critic_parts(critic: Any) -> CriticParts | None:
    """The parts of a critic scorer; ``None`` for anything that has no model with a value head."""
    if not isinstance(getattr(critic, "value_head", None), ValueHead):
        return None
    return CriticParts(critic.model, critic.value_head, getattr(critic, "adapter", None))


def save_pretrained_dir(
    model: nn.Module,
    tokenizer: "PreTrainedTokenizerBase | None",
    path: str | Path,
    merge: bool = False,
    value_head: ValueHead | None = None,
    critic: CriticParts | None = None,
    whole: Mapping[nn.Module, dict[str, Tensor]] | None = None,
) -> Path:
    """Write a model, and its tokenizer, without changing anything about the model.

    Without adapters: the whole model. With adapters: the active adapter alone, with the name of its base;
    or, with ``merge``, the base with the adapter worked in, as an ordinary model. A quantised base is loaded
    again in full precision for that, because merging into 4 bits would round the adapter away.

    Args:
        model: a model of transformers, with or without adapters of peft.
        tokenizer: is written beside it.
        path: the directory; an earlier export in it is replaced once the new one is complete.
        merge: work the adapter into the base.
        value_head: on the model's own states; written beside it as ``value_head.safetensors``.
        critic: written into the folder ``critic`` of the directory.
        whole: the whole weights of those that are sharded and hold a part of them themselves
            (:func:`lit_align.models.whole_weights.whole_weights`).

    Returns:
        The directory.

    Raises:
        FileExistsError: the directory holds something that is no export.
        ValueError: a quantised base to merge into has no name to load it by again, or what is to be merged
            is sharded.
    """
    states = dict(whole or {})
    if merge and model in states and hasattr(model, "peft_config"):
        raise ValueError("a sharded model cannot be merged; train, then: lit-align export RUN --merge")

    def fill(folder: Path) -> None:
        _fill(folder, model, merge, value_head, states)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        if critic is not None:
            (folder / CRITIC).mkdir()
            _fill(folder / CRITIC, critic.model, merge, critic.value_head, states, critic.adapter)

    return write_directory(Path(path), fill)


def _fill(
    folder: Path,
    model: Any,
    merge: bool,
    value_head: ValueHead | None,
    states: Mapping[nn.Module, dict[str, Tensor]],
    adapter: str | None = None,
) -> None:
    # Of a sharded model, the weights that were gathered.
    given = {"state_dict": states[model]} if model in states else {}
    if not hasattr(model, "peft_config"):
        model.save_pretrained(folder, **given)
    elif merge:
        _merged(model, adapter or _active(model)).save_pretrained(folder)
    else:
        _save_adapter(model, folder, adapter or _active(model), **given)
    if value_head is not None:
        save_value_head(value_head, folder, states.get(value_head))


def write_directory(path: Path, fill: Callable[[Path], None]) -> Path:
    """Fill a directory beside ``path``, then put it in its place: whole, or not at all."""
    path = path.expanduser()
    if path.is_symlink() or (path.exists() and not _replaceable(path)):
        kind = "a link" if path.is_symlink() else "not empty, and holds no model that could be replaced"
        raise FileExistsError(f"{path} is {kind}; name another directory to export to")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    old = temporary.with_suffix(".old")
    try:
        fill(temporary)
        # mkdtemp makes a directory that only its owner can read.
        temporary.chmod(0o755)
        if path.exists():
            path.rename(old)
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        if old.exists():
            old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)
    return path


def _replaceable(path: Path) -> bool:
    if not path.is_dir():
        return False
    names = set(os.listdir(path))
    described = {"config.json", "adapter_config.json"} & names
    weighs = any(name.endswith(".safetensors") for name in names)
    # Other things have such files too, but no folders or hidden names of theirs are in what we write.
    foreign = [
        name for name in names if name.startswith(".") or ((path / name).is_dir() and name not in _FOLDERS)
    ]
    return not names or bool(described and weighs and not foreign)


def _save_adapter(model: Any, folder: Path, name: str, **given: Any) -> None:
    from peft.tuners.tuners_utils import BaseTunerLayer

    embeddings = model.get_base_model().get_input_embeddings()
    # Decided here, because peft would ask the Hub for the base's configuration.
    whole = isinstance(embeddings, BaseTunerLayer)
    model.save_pretrained(folder, selected_adapters=[name], save_embedding_layers=whole, **given)
    inside = folder / name
    if name != "default" and inside.is_dir():
        # peft puts an adapter of another name one level down, where no loader looks by itself.
        for file in inside.iterdir():
            file.rename(folder / file.name)
        inside.rmdir()


def merged_model(model: Any) -> Any:
    """A model of peft with its active adapter worked in, for saving; it shares all other weights."""
    return _merged(model, _active(model))


def _merged(model: Any, adapter: str) -> Any:
    base = model.get_base_model()
    if getattr(base, "is_quantized", False):
        return _merged_quantized(model, base, adapter)
    config = copy.deepcopy(base.config)
    state = _merged_state(base, adapter)
    with torch.device("meta"):
        shell = type(base)(config)
    shell.load_state_dict(state, assign=True)
    if getattr(base, "generation_config", None) is not None:
        shell.generation_config = base.generation_config
    _untie_if_apart(shell)
    return shell


@torch.no_grad()
def _merged_state(base: nn.Module, adapter: str) -> dict[str, Tensor]:
    # Layer by layer on a copy, so that the weights in training are not touched, and no second model is made.
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    wrapped: dict[str, nn.Module] = {}
    for name, module in base.named_modules():
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper) and not _inside(name, wrapped):
            wrapped[name] = module
    state = {key: value for key, value in base.state_dict().items() if not _inside(key, wrapped)}
    for name, module in wrapped.items():
        layer: Any = copy.deepcopy(module)
        if hasattr(layer, "unload_and_optionally_merge_module"):
            plain = layer.unload_and_optionally_merge_module(
                merge=True, safe_merge=True, adapter_names=[adapter]
            )
        else:
            layer.merge(safe_merge=True, adapter_names=[adapter])
            plain = layer.get_base_layer()
        state.update({f"{name}.{key}": value for key, value in plain.state_dict().items()})
    return state


def _merged_quantized(model: Any, base: Any, adapter: str) -> Any:
    from peft import PeftModel

    source = base.config._name_or_path
    if not source:
        raise ValueError(
            "the quantised base has no name to load it by in full precision, so the adapter cannot be "
            "merged; export the adapter alone"
        )
    commit = getattr(base.config, "_commit_hash", None)
    with tempfile.TemporaryDirectory() as folder, quiet_loading():
        _save_adapter(model, Path(folder), adapter)
        options = {} if commit is None else {"revision": commit}
        if base.config.num_labels == 1:
            options["num_labels"] = 1
        full = type(base).from_pretrained(source, dtype="auto", **options)
        merged = PeftModel.from_pretrained(full, folder).merge_and_unload(safe_merge=True)
    merged.config.pad_token_id = base.config.pad_token_id
    return merged


def _untie_if_apart(shell: Any) -> None:
    inner, outer = shell.get_input_embeddings(), shell.get_output_embeddings()
    if outer is None or not shell.config.tie_word_embeddings:
        return
    if inner.weight.data_ptr() != outer.weight.data_ptr() and not torch.equal(inner.weight, outer.weight):
        shell.config.tie_word_embeddings = False


def _inside(name: str, wrapped: dict[str, nn.Module]) -> bool:
    return any(name == path or name.startswith(path + ".") for path in wrapped)


def _active(model: Any) -> str:
    names = list(model.active_adapters)
    if len(names) != 1:
        raise ValueError(
            f"the model has {len(names)} active adapters ({', '.join(names)}); one can be exported"
        )
    return names[0]
