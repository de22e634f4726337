"""Which tokenizer, and which chat template."""

from pathlib import Path
from typing import Any

from lit_align.datamodules.bad_rows import DataError, nearest
from lit_align.shipped import find


def load_tokenizer(name: str) -> Any:
    """A tokenizer by the name or path of its model.

    Raises:
        DataError: there is none of that name.
    """
    from transformers import AutoTokenizer

    try:
        shipped = find(name)
        return AutoTokenizer.from_pretrained(str(shipped or name))
    except (OSError, ValueError) as error:
        parent = Path(name).expanduser().parent
        here = [str(p) for p in parent.iterdir() if p.is_dir()] if parent.is_dir() else []
        lines = str(error).strip().splitlines() or ["no message"]
        raise DataError(f"no tokenizer {name!r}{nearest(name, here)}: {lines[0]}") from error


def module_tokenizer(trainer: Any) -> Any:
    """The tokenizer of the module that a trainer trains.

    Raises:
        DataError: there is no trainer, or its module has no tokenizer.
    """
    if trainer is None:
        raise DataError(
            "no tokenizer: used without a trainer, the DataModule needs tokenizer=<name, path or tokenizer>"
        )
    tokenizer = getattr(trainer.lightning_module, "tokenizer", None)
    if tokenizer is None:
        raise DataError(
            f"{type(trainer.lightning_module).__name__} has no attribute 'tokenizer'; "
            "give the DataModule its own: tokenizer=<name, path or tokenizer>"
        )
    return tokenizer


def read_template(template: str | None) -> str | None:
    """A chat template: Jinja text as it is, or the content of the file that holds it.

    Raises:
        DataError: it is neither.
    """
    if template is None or "{" in template:
        return template
    path = Path(template).expanduser()
    if not path.is_file():
        raise DataError(f"chat_template {template!r} is neither Jinja text nor a file")
    return path.read_text(encoding="utf-8")


def pad_id(tokenizer: Any) -> int:
    """The token to fill rectangles with. Nothing is told from it, so EOS will do."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return 0
