"""The generator for every architecture: transformers' own loop, with our choice of tokens.

Slower than `NativeGenerator`, which asks more of a model.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lit_align.batches import Forest
from lit_align.rollouts.decoding import Values
from lit_align.rollouts.generate import generation_mode, left_pad
from lit_align.rollouts.generator import Generator, check_positions, check_request
from lit_align.rollouts.sampling import Sampling
from lit_align.rollouts.sharded import whole_root
from lit_align.rollouts.stopping import stop_tokens
from lit_align.rollouts.transcript import Transcript
from lit_align.runtime.agreement import agree
from lit_align.scoring.padded import base_model, last_hidden_state
from lit_align.scoring.policy import Policy

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TransformersGenerator(Generator):
    """Generates with the model's ``generate``, in padded batches.

    An encoder-decoder model reads the prompt and writes the completion, which does not contain the token
    that its decoder starts with.

    Args:
        max_rows: completions that are written at once.
        in_step: all processes make equally many forward passes. So it is anyway where the policy is sharded;
            say so where it is the model inside of it.
    """

    def __init__(self, max_rows: int = 64, in_step: bool = False) -> None:
        if max_rows < 1:
            raise ValueError(f"max_rows is {max_rows}; it must be at least 1")
        self.max_rows = max_rows
        self.in_step = in_step

    def sync(self, policy: Policy, version: int) -> None:
        """Nothing to hand over: the policy's own weights are used."""

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
        """See :class:`~lit_align.rollouts.generator.Generator`."""
        check_request(prompts, completions, seeds)
        check_positions(base_model(policy.model), prompts, sampling)
        model: Any = base_model(policy.model)
        ends = stop_tokens(model, tokenizer, sampling)
        device = next(policy.parameters()).device
        transcript = Transcript(
            prompts, completions, sampling, seeds, ends, tokenizer, device, value_head is not None
        )
        # Rows of like length pad each other least.
        order = sorted(range(len(seeds)), key=lambda c: -len(prompts[c // completions]))
        chunks = [order[i : i + self.max_rows] for i in range(0, len(order), self.max_rows)]
        whole = whole_root(policy, value_head)
        with generation_mode(policy, value_head), whole as (root_is_sharded, values):
            sharded = root_is_sharded or self.in_step
            calls = agree(len(chunks), device) if sharded else len(chunks)
            for i in range(calls):
                # A process that has written everything goes along, for the others' sake.
                rows = chunks[i] if i < len(chunks) else []
                self._generate(policy.model, transcript, rows, values, device, sharded)
        return transcript.forest()

    def _generate(
        self,
        model: Any,
        transcript: Transcript,
        rows: list[int],
        values: Values | None,
        device: torch.device,
        sharded: bool,
    ) -> None:
        from transformers import LogitsProcessorList, StoppingCriteriaList

        prompts = [transcript.prompts[c // transcript.completions] for c in rows] or [[0]]
        ids, mask = left_pad(prompts, 0, device)
        with last_hidden_state(model if values else None) as states, _plain_generation_config(model):
            loop = _Loop(transcript, rows, values, states)
            model.generate(
                input_ids=ids,
                attention_mask=mask,
                do_sample=False,
                use_cache=True,
                max_new_tokens=transcript.sampling.max_new_tokens,
                logits_processor=LogitsProcessorList([loop.choose]),
                stopping_criteria=StoppingCriteriaList([loop.stop]),
                synced_gpus=sharded,
            )


class _Loop:
    """What happens between two forward passes of ``generate``."""

    def __init__(
        self, transcript: Transcript, rows: list[int], values: Values | None, states: list[Tensor]
    ) -> None:
        self.transcript, self.rows, self.values, self.states = transcript, rows, values, states

    def choose(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """All but the chosen token impossible."""
        places = [i for i, c in enumerate(self.rows) if self.transcript.running[c]]
        chosen = torch.zeros(len(scores), dtype=torch.long, device=scores.device)
        # Of the latest forward pass only.
        states = [state[:, -1] for state in self.states[-1:]]
        self.states.clear()
        if places:
            index = torch.tensor(places, device=scores.device)
            values = None if self.values is None else self.values(states[0][index])
            rows = [self.rows[i] for i in places]
            chosen[index] = self.transcript.write(rows, scores[index], values)
        return torch.full_like(scores, -torch.inf).scatter(1, chosen[:, None], 0.0)

    def stop(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        """``[R]``, which rows are complete."""
        done = [not self.transcript.running[c] for c in self.rows] or [True]
        return torch.tensor(done, device=input_ids.device)


@contextmanager
def _plain_generation_config(model: Any) -> Iterator[None]:
    """No sampling options of the model's own, which would silently change the distribution."""
    from transformers import GenerationConfig

    model = base_model(model)
    own = model.generation_config
    kept = ("bos_token_id", "decoder_start_token_id")
    model.generation_config = GenerationConfig(**{name: getattr(own, name, None) for name in kept})
    try:
        yield
    finally:
        model.generation_config = own
