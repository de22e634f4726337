"""What every generator promises: prompts in, a forest of sampled completions out."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

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
            ValueError: a prompt is empty, or the seeds are not ``P * G``.
        """
        ...


def check_request(prompts: Sequence[Sequence[int]], completions: int, seeds: Sequence[int]) -> None:
    """Raise where prompts and seeds cannot be served.

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
