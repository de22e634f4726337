"""A linear output head at work: tiles of logits, their log-probs and statistics, and their gradients.

With ``z = h Wᵀ``, ``p = softmax(z)`` and ``H`` the entropy of ``p``: ``d logp_y / dz = e_y - p``, and
``dH / dz = -p (log p + H)``.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lit_align.batches import Forest
from lit_align.functional.logprobs import token_statistics
from lit_align.models.tensor_parallel import original_class
from lit_align.outputs import LossOutput, Scores, Statistic
from lit_align.scoring.blocks import Block
from lit_align.scoring.head_gradient import HeadGradient

# 256 rows keep the products efficient; a small vocabulary takes more, for the sake of the calls around them.
ROWS = 256
LOGITS = 2**20
# Logits that are worked on while they are in cache.
PIECE = 2**18
# An indivisible block (a pair, a group) above this many logits is computed twice instead of being kept.
LARGEST_BLOCK = 2**27
# Where p is 0 (a token that cannot occur) log p is held here, so that p log p is 0: exp of it is.
LEAST_LOGP = -1e4

Loss = Callable[[Scores, Forest], LossOutput]


class Head(NamedTuple):
    """A linear output head.

    Attributes:
        weight: ``[V, D]``.
        bias: ``[V]`` or ``None``.
        softcap: logits are ``softcap * tanh(z / softcap)`` where it is given (Gemma).
        scale: factor on the logits, one over the temperature among others.
    """

    weight: Tensor
    bias: Tensor | None = None
    softcap: float | None = None
    scale: float = 1.0


def plain_head(model: Any, temperature: float = 1.0) -> Head | None:
    """The head of a model where it is one matrix, ``None`` where something else is computed."""
    layer = model.get_output_embeddings()
    # Adapters, quantised layers and others have a forward of their own.
    if original_class(layer) is not nn.Linear:
        return None
    config = model.config.get_text_config()
    scale = float(getattr(config, "logit_scale", None) or 1.0) / float(
        getattr(config, "logits_scaling", None) or 1.0
    )
    softcap = getattr(config, "final_logit_softcapping", None)
    return Head(layer.weight, layer.bias, softcap, scale / temperature)


def chunk_rows(vocabulary: int) -> int:
    """How many rows of logits are worked on at a time."""
    return max(ROWS, LOGITS // vocabulary)


def head_scores(
    hidden: Tensor, head: Head, targets: Tensor, statistics: frozenset[Statistic] = frozenset()
) -> dict[str, Tensor]:
    """Log-probs and statistics ``[M]`` without gradients, chunk by chunk."""
    with torch.no_grad():
        work = HeadWork(hidden, head, targets, statistics, (False, False, False, False))
        step = chunk_rows(len(head.weight))
        spans = [(a, min(a + step, len(targets))) for a in range(0, max(len(targets), 1), step)]
        found = [work.scored(a, b)[1] for a, b in spans]
        return {name: torch.cat([f[name] for f in found]) for name in found[0]}


def exponentiate(logits: Tensor, keep: bool = False) -> tuple[Tensor, Tensor]:
    """Write ``exp(z - max z)`` over the logits ``[rows, V]``, or leave them as they are.

    Args:
        logits: ``[rows, V]``.
        keep: leave them; the sums are the same to the bit.

    Returns:
        ``max z`` and the sums of the exponentials, ``[rows]`` each.
    """
    # A few rows at a time stay in cache for all four passes, which takes half the time.
    step = max(1, PIECE // max(logits.shape[1], 1)) if logits.is_cpu else max(len(logits), 1)
    largest, sums = logits.new_empty(len(logits)), logits.new_empty(len(logits))
    for a in range(0, len(logits), step):
        rows, most = logits[a : a + step], largest[a : a + step]
        torch.amax(rows, -1, out=most)
        shifted = rows.sub(most[:, None]) if keep else rows.sub_(most[:, None])
        torch.sum(shifted.exp_(), -1, out=sums[a : a + step])
    return largest, sums


class _Slopes(NamedTuple):
    """Derivatives of a block's loss: by log-prob ``[rows]``, and by entropy where the loss uses it."""

    d_logps: Tensor
    d_entropy: Tensor | None = None
    entropy: Tensor | None = None

    def rows(self, a: int, b: int) -> "_Slopes":
        return _Slopes(*(None if t is None else t[a:b] for t in self))  # type: ignore[arg-type]


class HeadWork:
    """The buffers of one pass, and what is done with a block."""

    def __init__(
        self,
        hidden: Tensor,
        head: Head,
        targets: Tensor,
        statistics: frozenset[Statistic],
        needs: Sequence[bool],
        values: Tensor | None = None,
        gradient: HeadGradient | None = None,
    ) -> None:
        autocast = torch.is_autocast_enabled(hidden.device.type)
        self.dtype = torch.get_autocast_dtype(hidden.device.type) if autocast else head.weight.dtype
        # Sums over thousands of rows are kept in float32, whatever the products are made in.
        self.wide = torch.promote_types(self.dtype, torch.float32)
        self.hidden, self.head, self.targets, self.statistics = hidden, head, targets, statistics
        self.weight = head.weight.to(self.dtype)
        self.total = hidden.new_zeros((), dtype=self.wide)
        self.d_hidden = torch.empty_like(hidden) if needs[0] else None
        self.gradient = gradient or HeadGradient()
        self.d_weight = self.gradient.buffer if needs[1] else None
        self.fresh_weight = needs[1] and self.d_weight is None
        if self.fresh_weight:
            self.d_weight = torch.empty_like(head.weight, dtype=self.wide)
        self.d_bias = torch.empty_like(head.bias, dtype=self.wide) if needs[2] else None  # type: ignore[arg-type]
        self.tile: Tensor | None = None
        self.values = values
        self.d_values = torch.zeros_like(values) if values is not None and needs[3] else None
        self.gradients = any(needs)
        self.fresh_bias = True
        # Statistics and soft-capping want the logits after the log-probs; without, exponentials replace them.
        self.powers = not statistics and head.softcap is None

    def block(self, block: Block, loss: Loss) -> LossOutput:
        """Score a block, run the loss on it, and add its gradients to the buffers."""
        start, end = block.rows.start, block.rows.stop
        vocabulary = self.weight.shape[0]
        rows = chunk_rows(vocabulary)
        once = end - start <= max(rows, LARGEST_BLOCK // vocabulary)
        step = max(end - start, 1) if once else rows
        spans = [(a, min(a + step, end)) for a in range(start, max(end, start + 1), step)]
        found: list[dict[str, Tensor]] = []
        kept: list[tuple[Tensor | None, Tensor]] = []
        for a, b in spans:
            logits, score, norm = self.scored(a, b)
            found.append(score)
            kept.append((logits if once else None, norm))
        scores = {name: torch.cat([f[name] for f in found]) for name in found[0]}
        output, slopes = self._differentiate(scores, block, loss)
        self.total += output.total.detach()
        if slopes is not None:
            for (a, b), (tile, norm) in zip(spans, kept, strict=True):
                if tile is None:
                    tile = self.logits(a, b)
                    if self.powers:
                        exponentiate(tile)
                self._add_gradients(tile, norm, slopes.rows(a - start, b - start), a, b)
        return output._replace(total=output.total.detach())

    def logits(self, a: int, b: int) -> Tensor:
        """``[b - a, V]`` logits, in float32 at least, which the next call overwrites."""
        states = self.hidden[a:b].to(self.dtype)
        if self.tile is None or len(self.tile) < len(states):
            self.tile = None  # the smaller one, so that there are never two
            self.tile = states.new_empty(len(states), len(self.weight))
        # A tile is the largest tensor there is, and memory that was not touched before comes page by page.
        logits = torch.mm(states, self.weight.T, out=self.tile[: len(states)]).to(self.wide)
        if self.head.bias is not None:
            logits += self.head.bias
        if self.head.softcap is not None:
            logits.div_(self.head.softcap).tanh_().mul_(self.head.softcap)
        return logits.mul_(self.head.scale) if self.head.scale != 1.0 else logits

    def scored(self, a: int, b: int) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """The tile of rows ``a .. b``, their log-probs and statistics, and the norms ``[b - a]``.

        Without statistics the tile holds exponentials, and the norms are their sums; with, it holds logits,
        and the norms are the logarithms of the sums.
        """
        logits, targets = self.logits(a, b), self.targets[a:b]
        chosen = logits.gather(1, targets[:, None])[:, 0]
        largest, sums = exponentiate(logits, keep=not self.powers)
        # With and without statistics to the bit: a reference, asked for none, must equal its policy.
        scores = {"logps": chosen - largest - sums.log()}
        if self.powers:
            return logits, scores, sums
        if self.statistics:
            scores = token_statistics(logits, targets, self.statistics) | scores
        return logits, scores, largest + sums.log()

    def _differentiate(
        self, scores: dict[str, Tensor], block: Block, loss: Loss
    ) -> tuple[LossOutput, "_Slopes | None"]:
        start, end = block.rows.start, block.rows.stop
        if self.values is not None:
            scores["values"] = self.values[start:end].detach().clone()
        leaves = {
            name: scores[name].requires_grad_(self.gradients)
            for name in ("logps", "entropy", "values")
            if name in scores
        }
        size = len(block.forest.completion_ids)
        with torch.set_grad_enabled(self.gradients):
            full = {n: v.new_zeros(size).index_put((block.places,), v) for n, v in scores.items()}
            output = loss(Scores(**full), block.forest)
            if not self.gradients:
                return output, None
            if not output.total.requires_grad:
                return output, _Slopes(torch.zeros_like(leaves["logps"]))
            slopes = torch.autograd.grad(output.total, list(leaves.values()), allow_unused=True)
        found = dict(zip(leaves, slopes, strict=True))
        if self.d_values is not None and found["values"] is not None:
            self.d_values[start:end] = found["values"] * self.gradient.loss_scale
        d_logps = torch.zeros_like(leaves["logps"]) if found["logps"] is None else found["logps"]
        if found.get("entropy") is None:
            return output, _Slopes(d_logps)
        return output, _Slopes(d_logps, found["entropy"], scores["entropy"].detach())

    def _add_gradients(self, tile: Tensor, norm: Tensor, slopes: "_Slopes", a: int, b: int) -> None:
        # d total / d z = d_logp (e_y - p) - d_entropy p (log p + H), written over the tile.
        cap_slope = self.cap_slope(tile)
        if self.powers:
            grads = tile.mul_((-slopes.d_logps / norm)[:, None])
        elif slopes.d_entropy is None:
            grads = tile.sub_(norm[:, None]).exp_().mul_(-slopes.d_logps[:, None])
        else:
            assert slopes.entropy is not None
            log_probs = tile.sub_(norm[:, None]).clamp_min_(LEAST_LOGP)
            factor = log_probs + slopes.entropy[:, None]
            factor.mul_(slopes.d_entropy[:, None]).add_(slopes.d_logps[:, None])
            grads = log_probs.exp_().mul_(factor.neg_())
        grads.scatter_add_(1, self.targets[a:b, None], slopes.d_logps[:, None])
        self.accumulate(grads, cap_slope, a, b)

    def cap_slope(self, logits: Tensor) -> Tensor | None:
        """Derivative of the soft-capping at capped logits ``[rows, V]``, where there is any."""
        if self.head.softcap is None:
            return None
        return 1 - (logits / (self.head.softcap * self.head.scale)).square_()

    def accumulate(self, grads: Tensor, cap_slope: Tensor | None, a: int, b: int) -> None:
        """Add what the gradients ``[b - a, V]`` of rows ``a .. b`` of logits mean for states and head."""
        if self.head.scale != 1.0:
            grads.mul_(self.head.scale)
        if cap_slope is not None:
            grads.mul_(cap_slope)
        if self.gradient.loss_scale != 1.0:
            # Before they are rounded: small ones are none in float16.
            grads.mul_(self.gradient.loss_scale)
        narrow = grads.to(self.dtype)
        if self.d_hidden is not None:
            self.d_hidden[a:b] = narrow @ self.weight
        if self.d_weight is not None:
            self._add(self.d_weight, narrow.T, self.hidden[a:b].to(self.dtype))
            self.fresh_weight = False
        if self.d_bias is not None:
            self.d_bias.copy_(grads.sum(0)) if self.fresh_bias else self.d_bias.add_(grads.sum(0))
            self.fresh_bias = False

    def _add(self, total: Tensor, left: Tensor, right: Tensor) -> None:
        if total.dtype != left.dtype:
            product = left @ right
            total.copy_(product) if self.fresh_weight else total.add_(product)
        elif self.fresh_weight:
            torch.mm(left, right, out=total)
        else:
            total.addmm_(left, right)
