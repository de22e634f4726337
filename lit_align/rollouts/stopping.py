"""What ends a completion: tokens, and texts."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lit_align.rollouts.sampling import Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def stop_tokens(
    model: Any, tokenizer: "PreTrainedTokenizerBase | None", sampling: Sampling
) -> frozenset[int]:
    """The tokens that end a completion: the tokenizer's, the model's and the caller's."""
    found = set(sampling.stop_token_ids)
    if tokenizer is not None and tokenizer.eos_token_id is not None:
        found.add(int(tokenizer.eos_token_id))
    ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    found.update(ends if isinstance(ends, list | tuple) else [] if ends is None else [ends])
    return frozenset(found)


class StopTexts:
    """Finds texts in what is being written, token by token.

    Args:
        texts: any of them ends a completion.
        tokenizer: turns tokens into text.

    Raises:
        ValueError: there are texts but no tokenizer.
    """

    def __init__(self, texts: Sequence[str], tokenizer: "PreTrainedTokenizerBase | None") -> None:
        if texts and tokenizer is None:
            raise ValueError(f"stop texts {list(texts)} need a tokenizer to be found in tokens; give one")
        self.texts = tuple(texts)
        self.tokenizer = tokenizer
        # A token is a byte at least, and a few in front keep a first token's missing space out of the match.
        self._tail = max((len(text.encode()) for text in texts), default=0) + 8

    def ends(self, ids: Sequence[int]) -> bool:
        """Whether the last token completes one of the texts.

        Args:
            ids: the completion so far.
        """
        if not self.texts or self.tokenizer is None:
            return False
        tail = list(ids[-self._tail :])
        now = str(self.tokenizer.decode(tail))
        # Bytes that are no character yet are shown by a sign of their own.
        before = len(str(self.tokenizer.decode(tail[:-1])).rstrip("\ufffd"))
        return any((place := now.rfind(text)) >= 0 and place + len(text) > before for text in self.texts)
