"""What a training step learned from, whatever the data loader gave it."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lit_align.batches import Forest
from lit_align.callbacks.prompts import forest_of
from lit_align.rollouts.buffer import RolloutBuffer


def answered_batch(batch: Any, owner: str) -> Forest:
    """The batch as a forest.

    Raises:
        ValueError: it is neither a forest nor a padded mapping, or holds prompts that nobody has answered.
    """
    forest = forest_of(batch, owner)
    if forest.num_prompts and not forest.num_completions:
        raise ValueError(f"{owner}: the batch has prompts and no completions; give rows= to be completed")
    return forest


def learned_batch(module: Any, batch: Any, owner: str) -> Forest:
    """The batch as a forest; of a module that samples its own completions, the minibatch of its rollout.

    Args:
        module: the LightningModule.
        batch: of the data loader.
        owner: who asks, for the error.

    Raises:
        ValueError: it is neither a forest nor a padded mapping, or holds prompts that nobody has answered.
    """
    buffer = _buffer(module)
    unanswered = isinstance(batch, Forest) and batch.num_prompts and not batch.num_completions
    if not unanswered or buffer is None or buffer.experience is None:
        return answered_batch(batch, owner)
    return buffer.experience.select(buffer.plan[buffer.taken - 1])


def tokens_of(module: Any, batch: Any, owner: str) -> Tensor | int:
    """Tokens of that batch, each completion with its prompt; a tensor where counting would wait for it."""
    if isinstance(batch, Forest) and (batch.num_completions or not batch.num_prompts):
        return batch.num_tokens
    if isinstance(batch, Mapping) and isinstance(batch.get("attention_mask"), Tensor):
        mask: Tensor = batch["attention_mask"]
        return mask.sum()
    buffer = _buffer(module)
    if isinstance(batch, Forest) and buffer is not None and buffer.experience is not None:
        rollout, prompts = buffer.experience, set(buffer.plan[buffer.taken - 1])
        pairs = zip(rollout.completion_lengths, rollout.parents, strict=True)
        return sum(length + rollout.prompt_lengths[p] for length, p in pairs if p in prompts)
    return forest_of(batch, owner).num_tokens


def learned_tokens(module: Any, batch: Any) -> int | None:
    """How many tokens of that batch weigh something in the loss; ``None`` where nobody can tell."""
    if isinstance(batch, Forest):
        if batch.num_prompts and not batch.num_completions and _buffer(module) is None:
            return None
        return int(learned_batch(module, batch, "learned_tokens").weights.count_nonzero())
    labels = batch.get("labels") if isinstance(batch, Mapping) else None
    return int((labels != -100).sum()) if isinstance(labels, Tensor) and labels.ndim == 2 else None


def _buffer(module: Any) -> RolloutBuffer | None:
    return next((value for value in vars(module).values() if isinstance(value, RolloutBuffer)), None)
