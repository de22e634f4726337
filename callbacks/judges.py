"""Who says which of two completions is better."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from lit_align.batches import Forest
from lit_align.callbacks.prompts import Row, encode_rows
from lit_align.rollouts.generate import Prompt
from lit_align.rollouts.reward_config import RewardConfig
from lit_align.rollouts.reward_models import build_model


@runtime_checkable
class Judge(Protocol):
    """Compares two completions of each prompt; any function of this signature is one."""

    def __call__(
        self, prompts: Sequence[Prompt], firsts: Sequence[str], seconds: Sequence[str]
    ) -> Sequence[float | None]:
        """For each prompt how much the first one wins: 1, 0, or between (a tie is 0.5); None for no verdict.

        Args:
            prompts: texts or conversations.
            firsts: a completion of each.
            seconds: another one.
        """
        ...


class RewardJudge:
    """The completion with the higher reward wins; equal rewards are a tie. Its verdicts know no order.

    Args:
        model: a reward model: directory, shipped name, name on the Hub, or a module in memory made for the
            policy's tokens.
        batch_size: completions judged at once.
    """

    #: The verdict does not depend on which of the two comes first.
    symmetric = True

    def __init__(self, model: str | nn.Module, batch_size: int = 16) -> None:
        self._config = RewardConfig(model=model, batch_size=batch_size)
        self._built: Any = None
        self._tokenizer: Any = None
        self._device: Any = None

    def attach(self, module: Any, tokenizer: Any) -> None:
        """Load the model, for the completions of a policy with this tokenizer."""
        self._tokenizer, self._device = tokenizer, module.device
        if self._built is None:
            self._built = build_model(self._config, None, tokenizer).requires_grad_(False).eval()
        self._built.to(module.device)

    def __call__(
        self, prompts: Sequence[Prompt], firsts: Sequence[str], seconds: Sequence[str]
    ) -> list[float]:
        """1, 0.5 or 0 for each prompt."""
        if self._built is None:
            raise RuntimeError("RewardJudge has no model yet: call attach(module, tokenizer) first")
        first, second = (self._rewards(prompts, texts) for texts in (firsts, seconds))
        return [0.5 + 0.5 * float(sign) for sign in (first - second).sign()]

    @torch.no_grad()
    def _rewards(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> torch.Tensor:
        forest = encode_rows(self._tokenizer, [Row(p, t) for p, t in zip(prompts, texts, strict=True)])
        done = torch.ones(forest.num_completions, dtype=torch.bool)
        # What was asked, for a model that reads text through a template of its own.
        asked = Forest(
            **{
                **vars(forest),
                "completion_columns": {"finished": done},
                "records": tuple({"prompt": prompt} for prompt in prompts),
            }
        )
        rewards: torch.Tensor = self._built(asked.to(self._device), self._tokenizer)
        return rewards.float().cpu()
