"""The default generator: prompts read once, no padding, and no row that is finished goes along.

Prompts are read in flat rows, each once however many completions it gets. Completions are written side by
side in a static cache. A completion that ends gives its place to the next in the queue; when the queue is
empty, the rows that are left move together. The weights are the policy's own modules, adapters and quantised
layers among them.
"""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from lit_align.batches import Forest
from lit_align.rollouts.decoding import IDLE, DecodingLoop, Values
from lit_align.rollouts.generate import generation_mode
from lit_align.rollouts.generator import Generator, check_positions, check_request
from lit_align.rollouts.sampling import Sampling
from lit_align.rollouts.sharded import whole_root
from lit_align.rollouts.stopping import stop_tokens
from lit_align.rollouts.transcript import Transcript
from lit_align.rollouts.transformers_generator import TransformersGenerator
from lit_align.runtime.agreement import agree
from lit_align.scoring import leak
from lit_align.scoring.padded import base_model
from lit_align.scoring.policy import Policy

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


class NativeGenerator(Generator):
    """Generates in this process, with the policy's own modules.

    A model that does not take flat rows (see :mod:`lit_align.scoring.leak`), or whose window is shorter than
    a prompt with its completion, is left to :class:`TransformersGenerator`, which the log says once.

    Args:
        max_rows: completions that are written at once. The cache has a place for each.
        prefill_tokens: prompt tokens that are read at once, unless one prompt alone has more.
    """

    def __init__(self, max_rows: int = 64, prefill_tokens: int = 4096) -> None:
        for name, value in (("max_rows", max_rows), ("prefill_tokens", prefill_tokens)):
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        self.max_rows = max_rows
        self.prefill_tokens = prefill_tokens
        self._told = False
        self._lean: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()

    def __getstate__(self) -> dict[str, Any]:
        # What was found of models in this process: they are asked again in another.
        return {name: value for name, value in self.__dict__.items() if name != "_lean"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= {**state, "_lean": WeakKeyDictionary()}

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
        device = next(policy.parameters()).device
        ends = stop_tokens(base_model(policy.model), tokenizer, sampling)
        script = Transcript(
            prompts, completions, sampling, seeds, ends, tokenizer, device, value_head is not None
        )
        with generation_mode(policy, value_head), whole_root(policy, value_head) as (sharded, values):
            longest = max(map(len, prompts), default=0) + sampling.max_new_tokens
            obstacle = self._obstacle(policy, agree(longest, device) if sharded else longest)
            if obstacle is None:
                self._run(policy, script, values, device, sharded)
                return script.forest()
        if not self._told:
            logger.info("completions are written by transformers' own loop: %s", obstacle)
            self._told = True
        return TransformersGenerator(self.max_rows).generate(
            policy,
            tokenizer,
            prompts,
            completions=completions,
            sampling=sampling,
            seeds=seeds,
            value_head=value_head,
        )

    def _run(
        self,
        policy: Policy,
        script: Transcript,
        values: Values | None,
        device: torch.device,
        sharded: bool,
    ) -> None:
        loop = DecodingLoop(
            policy.model,
            script,
            values,
            self.max_rows,
            self.prefill_tokens,
            device,
            sharded,
            self._lean,
        )
        while (demand := agree(loop.demand(), device) if sharded else loop.demand()) != IDLE:
            loop.turn(demand)

    def _obstacle(self, policy: Policy, longest: int) -> str | None:
        name = type(base_model(policy.model)).__name__
        if policy.flat_layout(Forest.from_lists([[0]], [[[0]]])) is None:
            return f"{name} does not take flat rows"
        window = leak.longest_document(policy.model)
        if window is not None and longest > window:
            return f"{name} attends to {window} tokens, and a prompt with its completion may have {longest}"
        return None
