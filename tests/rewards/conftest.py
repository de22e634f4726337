from collections.abc import Callable, Sequence
from typing import Any

import pytest

from lit_align.rewards.inputs import RewardInputs


@pytest.fixture
def inputs() -> Callable[..., RewardInputs]:
    """``inputs(["reply", ...], group=2, answer=[...])``: completions, of which ``group`` share a prompt."""

    def make(completions: Sequence[str], group: int = 1, step: int = 3, **columns: Any) -> RewardInputs:
        groups = [i // group for i in range(len(completions))]
        return RewardInputs(
            prompts=[f"prompt {g}" for g in groups],
            completions=list(completions),
            prompt_ids=[[g] for g in groups],
            completion_ids=[[1] * len(text.split()) for text in completions],
            columns={"prompt": [f"prompt {g}" for g in groups], **columns},
            finished=[True] * len(completions),
            step=step,
            rows=[10 + g for g in groups],
            groups=groups,
        )

    return make
