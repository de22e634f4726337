"""A language model behind an OpenAI-compatible endpoint as a judge of two completions."""

import http.client
import json
import os
import re
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from lit_align.rollouts.generate import Prompt
from lit_align.rollouts.http_json import open_here
from lit_align.runtime import trust

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
    still has no verdict, or a reply without one, is left out, with a warning. Other statuses stop the run.

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
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"EndpointJudge: url is {url!r}; it begins with http:// or https://")
        trust.check_key(key_variable)
        missing = [name for name in ("{prompt}", "{first}", "{second}") if name not in template]
        if missing:
            raise ValueError(f"EndpointJudge: the template has no {', '.join(missing)}")
        if attempts < 1 or parallel < 1:
            raise ValueError("EndpointJudge: attempts and parallel must be at least 1")
        self.url, self.model, self.key_variable = url.rstrip("/"), model, key_variable
        self.template, self.max_tokens = template, max_tokens
        self.timeout, self.attempts, self.parallel = timeout, attempts, parallel
        #: Seconds before a second attempt; each further one waits twice as long.
        self.pause = 1.0

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
            raise ValueError(f"EndpointJudge: {self.url} gives no verdict: {reason}")

    def _ask(self, prompt: Prompt, first: str, second: str) -> tuple[float | None, str | None]:
        # By replacement rather than format(), since completions contain braces, and all at once, since they
        # may contain the names of the places.
        values = {"{prompt}": _shown(prompt), "{first}": first, "{second}": second}
        question = re.sub(r"\{(?:prompt|first|second)\}", lambda m: values[m[0]], self.template)
        reason = ""
        for attempt in range(self.attempts):
            if attempt:
                time.sleep(self.pause * 2 ** (attempt - 1))
            try:
                reply = self._reply(question)
            except urllib.error.HTTPError as error:
                reason = f"status {error.code}: {error.read(200).decode(errors='replace')}"
                if error.code != 429 and error.code < 500:
                    raise ValueError(f"EndpointJudge: {self.url} answers with {reason}") from error
            except (
                OSError,
                http.client.HTTPException,
                KeyError,
                IndexError,
                TypeError,
                json.JSONDecodeError,
            ) as error:
                reason = f"{type(error).__name__}: {error}"
            else:
                marks = re.findall(r"\[\[([ABC])\]\]", reply)
                # Reasoning before the verdict may quote the marks.
                return (_VERDICTS[marks[-1]], None) if marks else (None, f"no verdict in {reply[-100:]!r}")
        return None, reason

    def _reply(self, question: str) -> str:
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": question}],
            "temperature": 0,
            "max_tokens": self.max_tokens,
        }
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(self.key_variable):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(
            f"{self.url}/chat/completions", data=json.dumps(body).encode(), headers=headers
        )
        with open_here(request, self.timeout) as response:
            answer = json.load(response)
        return str(answer["choices"][0]["message"]["content"])


def _shown(prompt: Prompt) -> str:
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(f"{turn.get('role')}: {turn.get('content')}" for turn in prompt)
