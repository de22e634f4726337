"""Text to token ids, in pieces whose boundaries are those that the model meets when it generates.

A prompt is tokenised as generation will tokenise it: alone. The rules, tried in order for the pieces
of a text (prompt, completion; or prompt, reply, next user turn, reply ...):

1. The tokens of the text up to each boundary begin the tokens of the whole text: the whole is cut
   there. This is nearly always so.
2. A token of the whole text lies across a boundary, as in ``"Answer: " + "yes"`` where byte-level
   BPE has the token ``" yes"``: the pieces are taken one by one, for that is what generation sees,
   provided that they decode to the same text. (They do not with tokenizers that put a space before
   every text.)
3. Otherwise the whole is cut behind the tokens that prompt and whole have in common, and the
   completion begins a few characters early. Only for a prompt with one completion piece.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any

from lit_align.datamodules.bad_rows import BadRow


@dataclass(frozen=True)
class Draft:
    """A row as text, before it is tokenised.

    Attributes:
        row: number in the source.
        where: source and row, for messages.
        prompt: text of the prompt; may be empty.
        completions: for each completion, its pieces in order, each with the weight of its tokens.
        plain: text that no template rendered: the tokenizer's BOS goes in front.
        columns: numbers that go with the prompt.
        record: the row as it was read, as JSON, where it is to go along with the prompt.
    """

    row: int
    where: str
    prompt: str
    completions: tuple[tuple[tuple[str, float], ...], ...]
    plain: bool
    columns: dict[str, float]
    record: str | None = None


@dataclass
class Row:
    """A row as tokens: a prompt and its completions.

    Attributes:
        row: number in the source.
        prompt: token ids.
        completions: token ids of each completion.
        weights: a weight per completion token.
        columns: numbers that go with the prompt.
        record: the row as it was read, as JSON, or ``None`` where nobody asks for it.
    """

    row: int
    prompt: list[int]
    completions: list[list[int]]
    weights: list[list[float]]
    columns: dict[str, float]
    record: str | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens of the row's sequences, each completion with its prompt; a lone prompt is one sequence."""
        if not self.completions:
            return len(self.prompt)
        return sum(len(ids) + len(self.prompt) for ids in self.completions)


class Encoder:
    """A tokenizer, asked for whole batches, with its begin and end tokens made explicit."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.eos: int | None = tokenizer.eos_token_id
        bos = tokenizer.bos_token_id
        # Whether the tokenizer puts BOS in front by itself; GPT-2's has one and does not.
        begins = tokenizer("a")["input_ids"][:1]
        self.bos: list[int] = begins if bos is not None and begins == [bos] else []

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, nothing added in front or behind."""
        if not texts:
            return []
        # verbose=False: lengths are our own business, and truncation is explicit.
        ids: list[list[int]] = self.tokenizer(
            list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False
        )["input_ids"]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens included."""
        return str(
            self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        )

    def rows(self, drafts: Sequence[Draft]) -> list[Row | BadRow]:
        """Tokenise many rows in one call of the tokenizer.

        Returns:
            For each draft its row, or the error that says why it has none.
        """
        texts: dict[str, None] = {}
        for draft in drafts:
            texts[draft.prompt] = None
            for pieces in draft.completions:
                texts[draft.prompt + "".join(text for text, _ in pieces)] = None
                if len(pieces) > 1:
                    texts.update((text, None) for text, _ in pieces)
        known = dict(zip(texts, self.encode(list(texts)), strict=True))
        return [self._row(draft, known) for draft in drafts]

    def _row(self, draft: Draft, known: dict[str, list[int]]) -> Row | BadRow:
        if not draft.completions:
            return self._prompt_row(draft, known[draft.prompt])
        split: list[list[list[int]]] = []
        for pieces in draft.completions:
            cut = self._pieces([draft.prompt, *(text for text, _ in pieces)], known)
            if cut is None:
                return BadRow(
                    draft.where, "the tokenizer merges text across the end of a message; no mask fits"
                )
            split.append(cut)
        shortest = min(range(len(split)), key=lambda i: len(split[i][0]))
        prompt = list(split[shortest][0])
        completions, weights = [], []
        for pieces, cut in zip(draft.completions, split, strict=True):
            # Rule 3 may have cut the completions of one prompt at different places.
            late = cut[0][len(prompt) :]
            if cut[0] != prompt + late:
                return BadRow(draft.where, "the completions give their prompt different tokens")
            ids, mass = list(late), [pieces[0][1]] * len(late) if pieces else []
            for (_, weight), tokens in zip(pieces, cut[1:], strict=True):
                ids += tokens
                mass += [weight] * len(tokens)
            self._close(ids, mass, pieces[-1][1] if pieces else 1.0)
            completions.append(ids)
            weights.append(mass)
        if draft.plain and self.bos:
            self._begin(prompt, completions, weights)
        return Row(draft.row, prompt, completions, weights, draft.columns, draft.record)

    def _prompt_row(self, draft: Draft, ids: list[int]) -> Row | BadRow:
        """A row that is a prompt alone, as generation begins with it."""
        prompt = list(ids)
        if draft.plain and self.bos:
            self._begin(prompt, [], [])
        if not prompt:
            return BadRow(draft.where, "the tokenizer leaves nothing of the prompt")
        return Row(draft.row, prompt, [], [], draft.columns, draft.record)

    def _close(self, ids: list[int], weights: list[float], weight: float) -> None:
        """Put EOS behind a text that ended, once."""
        if self.eos is not None and (not ids or ids[-1] != self.eos):
            ids.append(self.eos)
            weights.append(weight)

    def _begin(self, prompt: list[int], completions: list[list[int]], weights: list[list[float]]) -> None:
        """Put BOS in front of a row, once."""
        if prompt:
            if prompt[:1] != self.bos:
                prompt[:0] = self.bos
            return
        for ids, mass in zip(completions, weights, strict=True):
            if ids[:1] != self.bos:
                ids[:0] = self.bos
                mass.insert(0, 0.0)

    def _pieces(self, pieces: list[str], known: dict[str, list[int]]) -> list[list[int]] | None:
        """Ids of each piece by the rules at the head of this file; ``None`` when none of them holds."""
        whole = known["".join(pieces)]
        if len(pieces) > 2:
            # The same as rule 1, without a call of the tokenizer for each boundary.
            apart = [known[piece] for piece in pieces]
            if list(chain.from_iterable(apart)) == whole:
                return apart
        starts = [known[pieces[0]], *self.encode(["".join(pieces[:n]) for n in range(2, len(pieces))])]
        if all(whole[: len(start)] == start for start in starts):
            ends = [0, *(len(start) for start in starts), len(whole)]
            return [whole[a:b] for a, b in pairwise(ends)]
        apart = self.encode(pieces)
        if self.decode(list(chain.from_iterable(apart))) == self.decode(whole):
            return apart
        if len(pieces) > 2:
            return None
        shared = common_prefix(starts[0], whole)
        return [whole[:shared], whole[shared:]]


def common_prefix(a: Sequence[Any], b: Sequence[Any]) -> int:
    """How many items two sequences have in common at their start.

    >>> common_prefix("prompt one", "prompt two")
    7
    """
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))
