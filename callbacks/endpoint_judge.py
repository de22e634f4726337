"""A language model behind an OpenAI-compatible endpoint as a judge of two completions."""

import re
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from lit_align.rollouts.generate import Prompt
from lit_align.rollouts.http_json import JsonClient, ServerRefusedError, ServerUnreachableError

#: After MT-Bench (Zheng et al. 2023, arXiv 2306.05685, figure 5), which found that such verdicts agree with
#: people's and favour one place of the two: so each pair is asked in both orders, see `WinRate`.
TEMPLATE = """Two assistants answered the same prompt. Judge which answer is better: correct, helpful, \
to the point. Neither the order of the answers nor their length says anything.

[Prompt]
{prompt}

[Answer A]
{first}

[Answer B]
{second}

End with one line that is [[A]] if answer A is better, [[B]] if answer B is better, [[C]] for a tie.
"""

_VERDICTS = {"A": 1.0, "B": 0.0, "C": 0.5}


class EndpointJudge:
    """Asks ``POST {url}/chat/completions`` about each pair, several at once.

    A request that times out, or is answered with a status of 429 or above 499, is made again; a pair that
    still has no answer, or one without a verdict, is left out, with a warning. Other statuses stop the run.

    Args:
        url: of the endpoint, up to ``/v1``.
        model: as the endpoint calls it.
        key_variable: environment variable that holds the key; none is sent where it is not set. On the
            command line its name begins with ``LIT_ALIGN_KEY``.
        template: of the question, with ``{prompt}``, ``{first}`` and ``{second}``, to be answered with
            ``[[A]]``, ``[[B]]`` or ``[[C]]``.
        max_tokens: of a reply.
        timeout: seconds that a request may take.
        attempts: requests per pair at most.
        parallel: requests at once.
        pause: seconds before a second attempt; each further one waits twice as long.
    """

    def __init__(
        self,
        url: str,
        model: str,
        key_variable: str = "LIT_ALIGN_KEY",
        template: str = TEMPLATE,
        max_tokens: int = 512,
        timeout: float = 60.0,
        attempts: int = 3,
        parallel: int = 8,
        pause: float = 1.0,
    ) -> None:
        missing = [name for name in ("{prompt}", "{first}", "{second}") if name not in template]
        if missing:
            raise ValueError(f"EndpointJudge: the template has no {', '.join(missing)}")
        if parallel < 1:
            raise ValueError(f"EndpointJudge: parallel is {parallel}; it must be at least 1")
        self.model, self.template, self.max_tokens, self.parallel = model, template, max_tokens, parallel
        self._client = JsonClient(url, timeout, attempts, pause, key_variable, key_needed=False)

    def __call__(
        self, prompts: Sequence[Prompt], firsts: Sequence[str], seconds: Sequence[str]
    ) -> list[float | None]:
        """1, 0.5, 0 or None for each prompt, in their order."""
        pairs = list(zip(prompts, firsts, seconds, strict=True))
        with ThreadPoolExecutor(self.parallel) as pool:
            found = list(pool.map(lambda pair: self._ask(*pair), pairs))
        failures = [reason for _, reason in found if reason is not None]
        if failures:
            warnings.warn(
                f"EndpointJudge: {len(failures)} of {len(found)} pairs have no verdict ({failures[0]})",
                stacklevel=2,
            )
        return [verdict for verdict, _ in found]

    def check(self) -> None:
        """Ask once, so that a wrong address or key is told before training.

        Raises:
            ValueError: there is no verdict; says why.
        """
        _, reason = self._ask("What is 1 + 1?", "2", "3")
        if reason is not None:
            raise ValueError(f"EndpointJudge: {self._client.url} gives no verdict: {reason}")

    def _ask(self, prompt: Prompt, first: str, second: str) -> tuple[float | None, str | None]:
        # By replacement rather than format(), since completions contain braces, and all at once, since they
        # may contain the names of the places.
        values = {"{prompt}": _shown(prompt), "{first}": first, "{second}": second}
        question = re.sub(r"\{(?:prompt|first|second)\}", lambda m: values[m[0]], self.template)
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": question}],
            "temperature": 0,
            "max_tokens": self.max_tokens,
        }
        try:
            answer = self._client.post("/chat/completions", body)
            reply = str(answer["choices"][0]["message"]["content"])
        except ServerRefusedError as error:
            raise ValueError(f"EndpointJudge: {error}") from error
        except ServerUnreachableError as error:
            return None, str(error)
        except (KeyError, IndexError, TypeError):
            return None, f"no reply of an assistant in {str(answer)[:100]!r}"
        marks = re.findall(r"\[\[([ABC])\]\]", reply)
        # Reasoning before the verdict may quote the marks.
        return (_VERDICTS[marks[-1]], None) if marks else (None, f"no verdict in {reply[-100:]!r}")


def _shown(prompt: Prompt) -> str:
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(f"{turn.get('role')}: {turn.get('content')}" for turn in prompt)
