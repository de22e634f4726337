"""How the next token is chosen: the distribution's temperature and cuts, and a draw from it.

A completion draws from a stream of random numbers of its own, made from its own seed. What else is in the
batch, which row the completion is in and how many processes take part cannot change what it becomes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor


@dataclass
class Sampling:
    """How completions are sampled."""

    max_new_tokens: int = 64
    """Longest completion, in tokens, the stop token included."""

    min_new_tokens: int = 0
    """Tokens before which a completion cannot end."""

    temperature: float = 1.0
    """The logits are divided by it; 0 takes the most probable token each time."""

    top_k: int = 0
    """Sample from this many most probable tokens; 0 is all."""

    top_p: float = 1.0
    """Sample from the smallest set of tokens with this much probability (nucleus, arXiv 1904.09751)."""

    min_p: float = 0.0
    """Sample from tokens with at least this share of the best one's probability (arXiv 2407.01082)."""

    repetition_penalty: float = 1.0
    """Divides the positive logits of tokens that occurred, prompt included, and multiplies the negative ones
    (CTRL, arXiv 1909.05858)."""

    stop: list[str] = field(default_factory=list)
    """Texts that end a completion, which contains them."""

    stop_token_ids: list[int] = field(default_factory=list)
    """Tokens that end a completion, beside those of the tokenizer and of the model."""

    shortest_limit: int | None = None
    """Draw each completion's own limit uniformly between this and max_new_tokens, so that a model cannot
    learn where the limit is (the length sampler of TRL's first PPO)."""

    def __post_init__(self) -> None:
        ranges = (
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
            ("min_new_tokens", self.min_new_tokens >= 0, "0 or above"),
            ("temperature", self.temperature >= 0, "0 (the most probable token) or above"),
            ("top_k", self.top_k >= 0, "0 (all tokens) or above"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "between 0 and 1"),
            ("repetition_penalty", self.repetition_penalty > 0, "above 0"),
        )
        for name, fits, expected in ranges:
            if not fits:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be {expected}")
        shortest = self.max_new_tokens if self.shortest_limit is None else self.shortest_limit
        if not 1 <= shortest <= self.max_new_tokens:
            raise ValueError(
                f"shortest_limit is {shortest}; it must be at least 1 and at most max_new_tokens, "
                f"{self.max_new_tokens}"
            )
        if self.min_new_tokens > shortest:
            raise ValueError(
                f"min_new_tokens is {self.min_new_tokens}, but a completion may be cut off after {shortest} "
                "tokens"
            )
        if isinstance(self.stop, str) or not all(self.stop):
            raise ValueError(f"stop is {self.stop!r}; it must be a list of texts that are not empty")


def random_streams(seeds: Sequence[int], length: int) -> Tensor:
    """Uniform random numbers, a stream per seed.

    Args:
        seeds: ``C`` seeds, up to 127 bits.
        length: how many numbers of each stream; a longer one begins with the shorter one.

    Returns:
        ``[C, length]`` float32 in [0, 1), from Philox with the seed as its key.
    """
    rows = np.empty((len(seeds), length), dtype=np.float32)
    for row, seed in zip(rows, seeds, strict=True):
        # 24 bits of the raw words: floats that no version of NumPy may make in another way.
        row[:] = (np.random.Philox(key=seed % 2**128).random_raw(length) >> 40) * 2.0**-24
    return torch.from_numpy(rows)


def length_limits(uniform: Tensor, sampling: Sampling) -> Tensor:
    """Each completion's own limit.

    Args:
        uniform: ``[C]`` in [0, 1).
        sampling: with ``shortest_limit`` and ``max_new_tokens``.

    Returns:
        ``[C]`` whole numbers.
    """
    longest = sampling.max_new_tokens
    shortest = longest if sampling.shortest_limit is None else sampling.shortest_limit
    return shortest + (uniform.double() * (longest - shortest + 1)).long()


def penalize_repetition(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Make tokens that occurred less probable (CTRL, arXiv 1909.05858, section 4.1, sign by sign).

    Args:
        logits: ``[R, V]``.
        seen: ``[R, V]`` bool, the tokens that occurred.
        penalty: above 1 to avoid them.
    """
    lowered = torch.where(logits > 0, logits / penalty, logits * penalty)
    return torch.where(seen, lowered, logits)


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Only the ``k`` most probable tokens, and those as probable as the last of them.

    Args:
        logits: ``[R, V]``.
        k: how many; 0 is all.
    """
    if k == 0 or k >= logits.shape[-1]:
        return logits
    last = logits.topk(k, dim=-1).values[:, -1:]
    return logits.masked_fill(logits < last, -torch.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Only the smallest set of most probable tokens whose probability is at least ``p``.

    Args:
        logits: ``[R, V]``.
        p: above 0; the most probable token always stays.
    """
    if p >= 1:
        return logits
    ranked, order = logits.sort(dim=-1, descending=True)
    probabilities = ranked.softmax(-1)
    before = running_sums(probabilities) - probabilities
    cut = before >= p
    cut[:, 0] = False
    return logits.masked_fill(torch.zeros_like(cut).scatter(1, order, cut), -torch.inf)


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """Only tokens with at least ``p`` times the probability of the most probable one.

    Args:
        logits: ``[R, V]``.
        p: share; 0 keeps all.
    """
    if p == 0:
        return logits
    return logits.masked_fill(logits < logits.amax(-1, keepdim=True) + float(np.log(p)), -torch.inf)


def running_sums(probabilities: Tensor) -> Tensor:
    """``[R, V]`` sums of each row up to and with each token, which never fall.

    A GPU adds floats in an order of its own, and ``deterministic: true`` refuses it; whole numbers it adds
    the same in any order.

    Args:
        probabilities: ``[R, V]`` in [0, 1], rows that sum to 1.
    """
    return whole_sums(probabilities) if probabilities.is_cuda else probabilities.cumsum(-1)


def whole_sums(probabilities: Tensor) -> Tensor:
    """Running sums ``[R, V]`` in float64 of probabilities rounded to 2^-40, exactly, in whatever order."""
    return (probabilities.double() * 2.0**40).round().long().cumsum(-1).double() * 2.0**-40


def draw(logits: Tensor, uniform: Tensor) -> Tensor:
    """One token a row from softmax(logits), by inverting the distribution function.

    Args:
        logits: ``[R, V]``.
        uniform: ``[R]`` in [0, 1); the same number gives the same token.

    Returns:
        ``[R]`` token ids; never one of probability 0.
    """
    upto = running_sums(logits.softmax(-1))
    total = upto[:, -1:]
    # Below the total even after rounding, so that some token's interval holds it.
    place = torch.minimum(uniform[:, None].to(upto.dtype) * total, torch.nextafter(total, -total))
    return torch.searchsorted(upto, place, right=True)[:, 0]


def choose(
    logits: Tensor,
    uniform: Tensor,
    sampling: Sampling,
    seen: Tensor | None = None,
    forbidden: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The next token of each row, and its log-prob.

    Args:
        logits: ``[R, V]`` as the model gives them.
        uniform: ``[R]`` in [0, 1).
        sampling: temperature and cuts. They apply in the order of transformers: penalty, forbidden tokens,
            temperature, top-k, top-p, min-p.
        seen: ``[R, V]`` bool tokens that occurred, for the repetition penalty.
        forbidden: ``[R, V]`` bool tokens that must not come.

    Returns:
        ``[R]`` token ids, and ``[R]`` their log-probs under softmax(logits / temperature) over the whole
        vocabulary (temperature 0 counts as 1), before penalty and cuts: what a trainer computes again.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    scaled = logits if sampling.temperature in (0, 1) else logits / sampling.temperature
    shaped = logits
    if seen is not None and sampling.repetition_penalty != 1:
        shaped = penalize_repetition(shaped, seen, sampling.repetition_penalty)
    if forbidden is not None:
        shaped = shaped.masked_fill(forbidden, -torch.inf)
    if sampling.temperature == 0:
        ids = shaped.argmax(-1)
    else:
        shaped = scaled if shaped is logits else shaped / sampling.temperature
        shaped = keep_top_p(keep_top_k(shaped, sampling.top_k), sampling.top_p)
        # Of NaN no token is drawn; whoever asked finds it in the log-prob.
        ids = draw(keep_min_p(shaped, sampling.min_p), uniform).clamp_(max=logits.shape[-1] - 1)
    return ids, scaled.gather(1, ids[:, None])[:, 0] - scaled.logsumexp(-1)
