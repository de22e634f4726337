"""What every generator promises: prompts in, a forest of sampled completions out."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from torch import nn

from lit_align.batches import Forest
from lit_align.rollouts.sampling import Sampling
from lit_align.scoring.policy import Policy

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@runtime_checkable
class Generator(Protocol):
    """Samples completions from a policy.

    What a completion becomes depends on the weights, its prompt, the sampling and its own seed: not on its
    neighbours in the batch, their order, or the process. (A product of matrices may round differently in
    another shape of batch, which moves log-probs by a few units of the last place.)
    """

    def sync(self, policy: Policy, version: int) -> None:
        """The weights have changed: hand them over.

        Args:
            policy: with its new weights.
            version: counts up with them.
        """
        ...

    def generate(
        self,
        policy: Policy,
        tokenizer: "PreTrainedTokenizerBase | None",
        prompts: Sequence[Sequence[int]],
        *,
        completions: int,
        sampling: Sampling,
        seeds: Sequence[int],
        value_head: nn.Module | None = None,
    ) -> Forest:
        """Complete each prompt several times. Modes of modules and global random states stay as they are.

        Args:
            policy: the model.
            tokenizer: for its end token and for stop texts; ``None`` where there are no stop texts.
            prompts: ``P`` lists of token ids, none empty.
            completions: ``G`` of each prompt.
            sampling: how.
            seeds: ``P * G`` seeds, those of the first prompt first.
            value_head: maps states of the last layer ``[*, D]`` to values ``[*]``.

        Returns:
            The prompts in their order with ``G`` completions each, the stop token included, and every token
            of weight 1. Token columns ``[N]``: ``old_logps`` of the sampled tokens under
            softmax(logits / temperature) over the whole vocabulary, before all cuts (temperature 0 counts as
            1), and ``values`` of the states in which they were chosen, where there is a value head.
            Completion column ``[C]``: ``finished``, whether a stop token or text ended it.

        Raises:
            ValueError: a prompt is empty, the seeds are not ``P * G``, or the model has not enough positions.
        """
        ...


def check_request(prompts: Sequence[Sequence[int]], completions: int, seeds: Sequence[int]) -> None:
    """See that prompts and seeds can be served.

    Raises:
        ValueError: a prompt is empty, or the numbers do not belong together.
    """
    if completions < 1:
        raise ValueError(f"completions is {completions}; each prompt needs at least 1")
    if len(seeds) != len(prompts) * completions:
        raise ValueError(
            f"{len(seeds)} seeds for {len(prompts)} prompts with {completions} completions each; give one a "
            "completion, those of the first prompt first"
        )
    for index, prompt in enumerate(prompts):
        if not len(prompt):
            raise ValueError(f"prompt {index} is empty: there is nothing to continue; give it a first token")


def check_positions(model: Any, prompts: Sequence[Sequence[int]], sampling: Sampling) -> None:
    """See that a model with a table of positions has one for every token that may come.

    Without this a run would end in an index error, at the first completion that gets so long.

    Args:
        model: of transformers.
        prompts: ``P`` lists of token ids.
        sampling: with the longest completion.

    Raises:
        ValueError: it has not.
    """
    config = model.config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None)
    if limit is None or getattr(config, "is_encoder_decoder", False):
        return
    words = model.get_input_embeddings()
    # Some keep two places for padding in front. Rotary positions have no table, and no end.
    tables = [m for m in model.modules() if isinstance(m, nn.Embedding) and m is not words]
    if not any(table.num_embeddings in (limit, limit + 2) for table in tables):
        return
    index, longest = max(enumerate(map(len, prompts)), key=lambda pair: pair[1], default=(0, 0))
    # The last token of a completion is never read.
    if longest + sampling.max_new_tokens - 1 > limit:
        raise ValueError(
            f"prompt {index} has {longest} tokens and max_new_tokens is {sampling.max_new_tokens}, but "
            f"{type(model).__name__} knows {limit} positions; shorten the prompts or the completions"
        )
