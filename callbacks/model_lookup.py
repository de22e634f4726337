"""The model of transformers, and its tokenizer, inside anyone's LightningModule."""

import warnings
from typing import TYPE_CHECKING, Any

import lightning as L
from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: Where a model is looked for first.
USUAL = ("policy.model", "model")


def find_model(module: nn.Module, name: str | None = None) -> Any:
    """The model that is trained.

    Args:
        module: a LightningModule, after its weights were built.
        name: attribute that holds the model, with dots; by default ``policy.model`` or ``model``, else the
            only model of transformers (or of peft) among the submodules, or the only one of them that is
            trained.

    Returns:
        The model of transformers, or of peft around one; out of a wrapper of ``torch.compile``.

    Raises:
        ValueError: there is none, there are several, or ``name`` leads nowhere; names what there is.
    """
    owner = type(module).__name__
    found = models_in(module)
    if name is not None:
        model = _attribute(module, name)
        if not _is_model(model):
            what = "no such attribute" if model is None else f"a {type(model).__name__} there"
            raise ValueError(
                f"model={name!r}: {owner} has {what}, not a model of transformers; it has {_names(found)}"
            )
        return model
    for usual in USUAL:
        if _is_model(model := _attribute(module, usual)):
            return model
    trained = {
        path: model for path, model in found.items() if any(p.requires_grad for p in model.parameters())
    }
    for candidates in (found, trained):
        if len(candidates) == 1:
            return next(iter(candidates.values()))
    if not found:
        raise ValueError(
            f"{owner} holds no model of transformers among its submodules. Give model= the attribute that "
            "holds it; one that is built later must be there when training starts"
        )
    raise ValueError(
        f"{owner} holds {len(found)} models of transformers ({_names(found)}), and which one is meant is not "
        f"plain. Say so, for example model={next(iter(trained or found))!r}"
    )


def find_tokenizer(
    module: L.LightningModule, name: str | None = None, datamodule: Any = None
) -> "PreTrainedTokenizerBase":
    """The tokenizer of a module.

    Args:
        module: a LightningModule.
        name: attribute of the module that holds it, with dots; by default ``tokenizer``,
            ``processing_class`` or ``processor``, of the module or else of the data module.
        datamodule: the trainer's, or ``None``.

    Raises:
        ValueError: there is none.
    """
    names = (name,) if name is not None else ("tokenizer", "processing_class", "processor")
    owners: list[Any] = [module] if name is not None else [module, datamodule]
    for owner in owners:
        # One of ours without a tokenizer says so by this flag, and by an error where it is asked for one.
        if owner is None or not getattr(owner, "has_tokenizer", True):
            continue
        for attribute in names:
            tokenizer = _attribute(owner, attribute)
            tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # of a processor
            if callable(tokenizer) and hasattr(tokenizer, "batch_decode"):
                return tokenizer
    raise ValueError(
        f"no tokenizer: {type(module).__name__} has none as {', '.join(names)}. Give tokenizer= the "
        "attribute that holds it"
    )


def find_tokenizer_or_none(module: Any, name: str | None, datamodule: Any) -> Any:
    """The tokenizer to write beside a model; ``None``, with a warning, where there is none."""
    try:
        return find_tokenizer(module, name, datamodule)
    except ValueError as error:
        if name is not None:
            raise
        warnings.warn(f"the model is written without a tokenizer: {error}", stacklevel=2)
        return None


def models_in(module: nn.Module) -> dict[str, Any]:
    """All models of transformers in a module by their names, those inside others left out."""
    found: dict[str, Any] = {}
    for path, child in module.named_modules():
        # A module compiled by torch looks like the one inside it, and is not it.
        child = getattr(child, "_orig_mod", child)
        if path and _is_model(child) and not any(path.startswith(f"{outer}.") for outer in found):
            found[path] = child
    return found


def is_adapted(model: Any) -> bool:
    """Whether it is wrapped by peft."""
    return hasattr(model, "peft_config") and hasattr(model, "disable_adapter")


def _is_model(value: Any) -> bool:
    # By what they can do, so that looking for one imports neither transformers nor peft.
    return isinstance(value, nn.Module) and (
        is_adapted(value) or (hasattr(value, "save_pretrained") and hasattr(value, "config"))
    )


def _attribute(owner: Any, name: str) -> Any:
    value = owner
    for part in name.split("."):
        value = getattr(value, part, None)
        if value is None:
            return None
    return getattr(value, "_orig_mod", value)


def _names(found: dict[str, Any]) -> str:
    return ", ".join(f"{path} ({type(model).__name__})" for path, model in found.items()) or "none"
