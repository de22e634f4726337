"""A generator that asks a server: vLLM, or another with OpenAI's completions and token ids.

The server has weights of its own, and computes a little differently. What it says about its log-probs is
kept as ``old_logps``; algorithms measure the gap to the trainer's, and can correct for it
(:class:`~lit_align.rollouts.correction.SamplerCorrection`).
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import nn

from lit_align.batches import Forest
from lit_align.rollouts.correction import SamplerCorrection
from lit_align.rollouts.generate import generation_mode
from lit_align.rollouts.generator import Generator, check_request
from lit_align.rollouts.http_json import JsonClient, ServerError
from lit_align.rollouts.sampling import Sampling, length_limits, random_streams
from lit_align.rollouts.stopping import stop_tokens
from lit_align.rollouts.weight_handover import WeightHandover
from lit_align.scoring.padded import base_model
from lit_align.scoring.policy import Policy

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Answer(NamedTuple):
    """One completion of the server."""

    ids: list[int]
    logps: list[float]
    finished: bool


class ServerGenerator(Generator):
    """Generates on a server, over HTTP.

    Every completion is a request of its own with its own seed, so that it depends on nothing else; the
    server's cache of prompts makes a group cheap. What is asked for beyond OpenAI's API is vLLM's: a prompt
    of token ids, ``return_token_ids`` (or ``return_tokens_as_token_ids``), ``min_p``, ``top_k``,
    ``min_tokens``, ``repetition_penalty`` and ``stop_token_ids``.

    Args:
        url: of the server, for example ``http://localhost:8000``.
        model: the name it serves the model under.
        handover: how it gets new weights; without one it keeps those it was started with.
        logprobs: what the server's log-probs mean, as it was started. ``raw`` (vLLM's default) are of the
            logits as the model gives them: right for a temperature of 1 (or 0). ``processed``
            (``--logprobs-mode processed_logprobs``) are of the distribution that was sampled from, with
            temperature, and with cuts where there are any.
        parallel: requests that are open at once.
        timeout: seconds that one answer may take.
        attempts: how often a request is made.
        pause: seconds before the second attempt; each further one waits twice as long.
        key_variable: environment variable with the key that the server wants, if it wants one; on the
            command line its name begins with ``LIT_ALIGN_KEY``.
    """

    #: What an algorithm does about the server's own rounding where nobody has said otherwise.
    default_correction = SamplerCorrection()

    def __init__(
        self,
        url: str,
        model: str,
        handover: WeightHandover | None = None,
        logprobs: Literal["raw", "processed"] = "raw",
        parallel: int = 64,
        timeout: float = 600.0,
        attempts: int = 5,
        pause: float = 1.0,
        key_variable: str | None = None,
    ) -> None:
        if logprobs not in ("raw", "processed"):
            raise ValueError(f"logprobs is {logprobs!r}; it must be raw or processed")
        if parallel < 1:
            raise ValueError(f"parallel is {parallel}; it must be at least 1")
        self.model, self.handover, self.logprobs, self.parallel = model, handover, logprobs, parallel
        self._client = JsonClient(url, timeout, attempts, pause, key_variable)
        self._served = model

    def sync(self, policy: Policy, version: int) -> None:
        """Hand the weights over, where there is a way to."""
        if self.handover is not None:
            self._served = self.handover(policy, version, self._client) or self.model

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
        """See :class:`~lit_align.rollouts.generator.Generator`. Values are computed here, by the policy.

        Raises:
            ServerError: the server is away, refuses, or answers something else than completions.
            ValueError: the server's log-probs would not be those of the temperature.
        """
        check_request(prompts, completions, seeds)
        if self.logprobs == "raw" and sampling.temperature not in (0, 1):
            raise ValueError(
                f"temperature is {sampling.temperature}, but the server's log-probs are raw, which is to say "
                "of temperature 1. Start vLLM with --logprobs-mode processed_logprobs and give "
                "logprobs='processed', or sample at temperature 1"
            )
        ends = stop_tokens(base_model(policy.model), tokenizer, sampling)
        limits = length_limits(random_streams(seeds, 1)[:, 0], sampling).tolist()

        def ask(c: int) -> Answer:
            body = self._request(list(prompts[c // completions]), sampling, limits[c], seeds[c])
            return read_answer(self._client.post("/v1/completions", body), ends, sampling)

        pool = ThreadPoolExecutor(self.parallel)
        try:
            answers = list(pool.map(ask, range(len(seeds))))
        finally:
            # Where one has failed for good, the others need not try.
            pool.shutdown(cancel_futures=True)
        forest = _forest(prompts, completions, answers).to(next(policy.parameters()).device)
        if value_head is None:
            return forest
        with generation_mode(policy, value_head):
            states, places = policy.token_states(forest)
            found = value_head(states).float()
        values = found.new_zeros(len(forest.completion_ids)).index_put((places,), found)
        return forest.with_token_column("values", values)

    def _request(self, prompt: list[int], sampling: Sampling, limit: int, seed: int) -> dict[str, Any]:
        return {
            "model": self._served,
            "prompt": prompt,
            "n": 1,
            "max_tokens": limit,
            "min_tokens": sampling.min_new_tokens,
            "temperature": sampling.temperature,
            "top_k": sampling.top_k or -1,
            "top_p": sampling.top_p,
            "min_p": sampling.min_p,
            "repetition_penalty": sampling.repetition_penalty,
            "stop": list(sampling.stop),
            "stop_token_ids": list(sampling.stop_token_ids),
            # 63 bits, which a signed integer of the server holds.
            "seed": seed % 2**63,
            "logprobs": 1,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
            "include_stop_str_in_output": True,
            "skip_special_tokens": False,
        }


def read_answer(answer: Any, ends: frozenset[int], sampling: Sampling) -> Answer:
    """The completion in a server's answer.

    Args:
        answer: as OpenAI's completions API has it, with token ids in ``choices[0].token_ids`` or, as
            ``token_id:17``, in ``choices[0].logprobs.tokens``.
        ends: the tokens that end a completion.
        sampling: what was asked for.

    Raises:
        ServerError: it is none, has no token ids or log-probs, or lacks the token that ended it.
    """
    try:
        choice = answer["choices"][0]
        logps = [float(value) for value in choice["logprobs"]["token_logprobs"]]
        ids = choice.get("token_ids")
        if ids is None:
            ids = [int(token.removeprefix("token_id:")) for token in choice["logprobs"]["tokens"]]
        finished = choice["finish_reason"] == "stop"
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise ServerError(
            f"the server's answer has no token ids with log-probs ({type(error).__name__}: {error}); it must "
            f"understand logprobs and return_token_ids, as vLLM does. It said: {str(answer)[:300]}"
        ) from error
    if len(ids) != len(logps) or not ids:
        raise ServerError(f"the server's answer has {len(ids)} tokens with {len(logps)} log-probs")
    if finished and not sampling.stop and ids[-1] not in ends:
        raise ServerError(
            f"the server ended a completion with token {ids[-1]}, which is no end here ({sorted(ends)}): "
            "either it leaves the stop token out, or its model ends with another token; give that one as "
            "sampling.stop_token_ids"
        )
    return Answer([int(token) for token in ids], logps, finished)


def _forest(prompts: Sequence[Sequence[int]], completions: int, answers: list[Answer]) -> Forest:
    groups = [answers[a : a + completions] for a in range(0, len(answers), completions)]
    forest = Forest.from_lists(
        [list(prompt) for prompt in prompts], [[a.ids for a in group] for group in groups]
    )
    logps = torch.tensor([value for answer in answers for value in answer.logps], dtype=torch.float32)
    finished = torch.tensor([answer.finished for answer in answers], dtype=torch.bool)
    return replace(forest, token_columns={"old_logps": logps}, completion_columns={"finished": finished})
