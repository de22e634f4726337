"""Loading a tokenizer, and looking at it before anything is trained on it."""

import logging
import re
from typing import TYPE_CHECKING, Any

from torch import nn

from lit_align.models.config import ModelConfig
from lit_align.models.sources import resolve
from lit_align.runtime.chat_template import EndlessTemplate, apply_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

_QUESTION, _ANSWER = "probe-question", "probe-answer"


def load_tokenizer(
    source: Any, *, revision: str | None = None, trust_remote_code: bool = False
) -> "PreTrainedTokenizerBase":
    """A tokenizer from a name, a directory, a model description, or a tokenizer, returned as it is.

    Args:
        source: Hub name, directory, shipped name, ``ModelConfig`` (its path, revision and
            ``trust_remote_code``), or a tokenizer object.
        revision: branch, tag or commit, where ``source`` is a name.
        trust_remote_code: run Python code that comes with the tokenizer.

    Raises:
        ValueError: there is no tokenizer in that place, or the description has no place.
    """
    if isinstance(source, ModelConfig):
        if not source.path:
            raise ValueError(
                "the policy is described by its architecture alone and has no tokenizer; give one "
                "(--model.tokenizer NAME)"
            )
        return load_tokenizer(
            source.path, revision=source.revision, trust_remote_code=source.trust_remote_code
        )
    if not isinstance(source, str) and not hasattr(source, "__fspath__"):
        if callable(source) and hasattr(source, "decode"):
            return source
        raise TypeError(f"a tokenizer is a name, a directory or a tokenizer, not {type(source).__name__}")
    from transformers import AutoTokenizer

    place = resolve(str(source))
    if trust_remote_code:
        logger.warning("trust_remote_code: Python code of the tokenizer of %s is run on this machine", place)
    arguments = {} if revision is None else {"revision": revision}
    try:
        return AutoTokenizer.from_pretrained(place, trust_remote_code=trust_remote_code, **arguments)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"no tokenizer could be loaded from {place}: {_first_line(error)} If the model lies there "
            "without one, name the tokenizer it belongs to (--model.tokenizer NAME)."
        ) from error


def check_tokenizer(tokenizer: "PreTrainedTokenizerBase", model: Any) -> None:
    """Look for the three faults that spoil a run without an error.

    * Ids beyond the embeddings: an error.
    * No pad token: one is chosen and the log says which. Masks are made from positions here, so even
      the EOS as padding would be harmless; it is the last resort all the same.
    * A chat template that never emits the EOS: a warning, because the model would not learn to stop.

    Args:
        tokenizer: is changed where it has no pad token.
        model: a model, its configuration, or its description.

    Raises:
        ValueError: the tokenizer has ids that the embeddings have no row for.
    """
    rows = _embedding_rows(model)
    ids = tokenizer.get_vocab().values()
    needed = max(ids, default=-1) + 1
    if needed > rows:
        raise ValueError(
            f"the tokenizer has {len(ids)} tokens with ids up to {needed - 1}, but the model has embeddings "
            f"for {rows}. They do not belong together; or, if tokens were added, call "
            f"model.resize_token_embeddings({needed}) and save the model"
        )
    if tokenizer.pad_token_id is None:
        choose_pad(tokenizer)
    unstoppable = missing_stop(tokenizer, _stop_ids(model))
    if unstoppable is not None:
        logger.warning("%s", unstoppable)


def choose_pad(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Give a tokenizer a pad token among the tokens that it has, and say so in the log.

    By preference: a token named after padding, the unknown token, a reserved or unused one, the EOS.
    """
    special = {t.content for t in tokenizer.added_tokens_decoder.values() if t.special}
    taken = {tokenizer.eos_token, tokenizer.bos_token}
    free = sorted(special - taken - {None}, key=tokenizer.convert_tokens_to_ids)
    named = [t for t in free if re.search(r"pad", t, re.IGNORECASE)]
    unknown = [t for t in [tokenizer.unk_token] if t is not None and t not in taken]
    unused = [t for t in free if re.search(r"reserved|unused|extra_id", t, re.IGNORECASE)]
    candidates = [*named, *unknown, *unused]
    if candidates:
        chosen, why = candidates[0], "which no text contains"
    elif tokenizer.eos_token is not None:
        chosen, why = tokenizer.eos_token, "the EOS itself, harmless here because masks go by position"
    else:
        raise ValueError(
            "the tokenizer has no pad token, no EOS, and no special token to pad with; set pad_token"
        )
    tokenizer.pad_token = chosen
    logger.warning("the tokenizer has no pad token; padding with %r (%s)", chosen, why)
    return chosen


def missing_stop(
    tokenizer: "PreTrainedTokenizerBase", also_stops: frozenset[int] = frozenset()
) -> str | None:
    """What is wrong when the chat template never writes the EOS, or ``None`` when nothing is.

    Args:
        tokenizer: with or without a chat template.
        also_stops: further ids at which the model's generation stops.

    Raises:
        EndlessTemplate: the template does not end.
    """
    if not tokenizer.chat_template:
        return None
    messages = [{"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER}]
    try:
        text = apply_template(tokenizer, messages, "a plain exchange")
    except EndlessTemplate:
        raise
    except Exception as error:
        # A template is somebody's program, and fails in whatever way it likes.
        return f"the chat template could not be checked for the EOS: it refuses a plain exchange ({error})"
    tail = text.rpartition(_ANSWER)[2]
    if tokenizer.eos_token is not None and tokenizer.eos_token in tail:
        return None
    after = tokenizer(tail, add_special_tokens=False)["input_ids"] if tail else []
    if also_stops & set(after):
        return None
    special = [t for t in tokenizer.convert_ids_to_tokens(after) if t in tokenizer.all_special_tokens]
    if special:
        return (
            f"the chat template ends the assistant's turn with {special[0]!r} and never with the EOS "
            f"{tokenizer.eos_token!r}: a model trained on it would not stop there. Make it the EOS "
            f"(tokenizer.eos_token = {special[0]!r}) and save the tokenizer"
        )
    return (
        f"the chat template writes no EOS ({tokenizer.eos_token!r}) after the assistant's turn: a model "
        "trained on it would not learn to stop. Put {{ eos_token }} after the assistant's content there"
    )


def _embedding_rows(model: Any) -> int:
    if isinstance(model, ModelConfig):
        model = _library_config(model)
    if isinstance(model, nn.Module):
        embeddings: Any = model.get_input_embeddings()  # type: ignore[operator]
        if hasattr(embeddings, "num_embeddings"):
            return int(embeddings.num_embeddings)
        model = model.config
    return int(model.get_text_config().vocab_size)


def _library_config(config: ModelConfig) -> Any:
    from transformers import AutoConfig

    if config.architecture is not None:
        return AutoConfig.for_model(**config.architecture)
    options = {} if config.revision is None else {"revision": config.revision}
    return AutoConfig.from_pretrained(
        resolve(config.path), trust_remote_code=config.trust_remote_code, **options
    )


def _stop_ids(model: Any) -> frozenset[int]:
    generation = getattr(model, "generation_config", None)
    eos = getattr(generation, "eos_token_id", None)
    return frozenset(eos if isinstance(eos, list) else [] if eos is None else [eos])


def _first_line(error: BaseException) -> str:
    line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return line if line.endswith((".", "!", "?")) else line + "."
