"""What a step learned from: the loader's batch, or the minibatch of a rollout."""

from typing import Any

import pytest
import torch
from torch import nn

from lit_align.batches import Forest
from lit_align.callbacks.learned_batch import answered_batch, learned_batch, learned_tokens, tokens_of
from lit_align.rollouts.buffer import RolloutBuffer

PAIRS = Forest.from_lists([[5, 6], [7]], [[[8, 9, 2], [3, 2]], [[4, 2]]])
PROMPTS = Forest.from_lists([[5, 6], [7]], [[], []])


class OnPolicy(nn.Module):
    def __init__(self, rollout: Forest | None) -> None:
        super().__init__()
        self.buffer = RolloutBuffer()
        if rollout is not None:
            self.buffer.fill(rollout, ((1,), (0,)), (0, 1))
            self.buffer.take()


def test_a_batch_with_completions_is_itself() -> None:
    assert learned_batch(nn.Module(), PAIRS, "X") is PAIRS
    # 2 + 3 and 2 + 2 of the first prompt, 1 + 2 of the second.
    assert tokens_of(nn.Module(), PAIRS, "X") == 12
    assert learned_tokens(nn.Module(), PAIRS) == 7


def test_prompts_are_the_minibatch_of_the_rollout() -> None:
    module = OnPolicy(PAIRS)
    assert learned_batch(module, PROMPTS, "X").completion_ids.tolist() == [4, 2]
    assert tokens_of(module, PROMPTS, "X") == 3
    assert learned_tokens(module, PROMPTS) == 2
    module.buffer.take()
    assert learned_batch(module, PROMPTS, "X").completion_lengths == (3, 2)
    assert tokens_of(module, PROMPTS, "X") == 9


def test_padded_batches() -> None:
    batch: dict[str, Any] = {
        "input_ids": torch.tensor([[5, 6, 0]]),
        "attention_mask": torch.tensor([[1, 1, 0]]),
        "labels": torch.tensor([[-100, 6, -100]]),
    }
    assert int(tokens_of(nn.Module(), batch, "X")) == 2
    assert learned_tokens(nn.Module(), batch) == 1
    assert tokens_of(nn.Module(), {"input_ids": batch["input_ids"]}, "X") == 3
    assert learned_tokens(nn.Module(), torch.ones(3)) is None


@pytest.mark.parametrize("module", [nn.Module(), OnPolicy(None)])
def test_prompts_that_nobody_answered_are_told(module: nn.Module) -> None:
    with pytest.raises(ValueError, match="X: the batch has prompts and no completions; give rows="):
        learned_batch(module, PROMPTS, "X")
    with pytest.raises(ValueError, match="X: the batch has prompts and no completions; give rows="):
        answered_batch(PROMPTS, "X")
    assert learned_tokens(nn.Module(), PROMPTS) is None
