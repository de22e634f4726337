"""Completions of fixed prompts by the model of anyone's module, in batches, through a generator."""

from collections.abc import Sequence
from typing import Any

from lit_align.batches import Forest
from lit_align.callbacks.sharding import is_sharded, run_inside
from lit_align.rollouts.generate import Prompt, encode_prompt
from lit_align.rollouts.generator import Generator
from lit_align.rollouts.native import NativeGenerator
from lit_align.rollouts.sampling import Sampling
from lit_align.rollouts.transformers_generator import TransformersGenerator
from lit_align.scoring.policy import Policy


class Completer:
    """Completes prompts without a trace: modes, gradients and the global random state stay as they are.

    The model of a `Policy` is asked through `NativeGenerator`. Any other one is asked through its own
    ``generate``, because the fast forms of its blocks would have to be put into it, and training would
    round differently.

    Args:
        module: the LightningModule.
        model: inside of it; of transformers or of peft.
        tokenizer: its tokenizer.
        batch_size: completions at once.
        generator: another one.

    Raises:
        ValueError: the model does not generate text.
    """

    def __init__(
        self, module: Any, model: Any, tokenizer: Any, batch_size: int, generator: Generator | None = None
    ) -> None:
        if not hasattr(model, "generate"):
            raise ValueError(f"{type(model).__name__} does not generate text")
        self.module, self.model, self.tokenizer = module, model, tokenizer
        ours = [m for m in module.modules() if isinstance(m, Policy) and m.model is model]
        self._policy = ours[0] if ours else Policy(model, layout="padded")
        self._inside = bool(ours)
        self._generator: Generator = generator or (
            NativeGenerator(batch_size)
            if ours
            else TransformersGenerator(batch_size, in_step=is_sharded(model))
        )

    def forest(
        self, prompts: Sequence[Prompt], seeds: Sequence[int], max_new_tokens: int, temperature: float
    ) -> Forest:
        """One completion for each prompt.

        Args:
            prompts: texts, which are continued as they stand, or conversations, which get the next turn.
            seeds: one for each; a completion depends on the weights, its prompt and its seed.
            max_new_tokens: longest completion.
            temperature: 0 takes the most probable token each time.
        """
        ids = [encode_prompt(self.tokenizer, prompt, index) for index, prompt in enumerate(prompts)]

        def generate() -> Forest:
            return self._generator.generate(
                self._policy,
                self.tokenizer,
                ids,
                completions=1,
                sampling=Sampling(max_new_tokens, temperature=temperature),
                seeds=seeds,
            )

        # A policy of ours gathers its shards by itself.
        return generate() if self._inside else run_inside(self.module, self.model, generate)

    def texts(
        self, prompts: Sequence[Prompt], seeds: Sequence[int], max_new_tokens: int, temperature: float
    ) -> list[str]:
        """The same as texts, without special tokens."""
        forest = self.forest(prompts, seeds, max_new_tokens, temperature)
        ids = [completion for _, completion, _ in forest.sequences()]
        return list(self.tokenizer.batch_decode(ids, skip_special_tokens=True))
