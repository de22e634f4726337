"""A reward model as an adapter on the policy's base: no second model in memory."""

from typing import Any

import torch
from torch import Tensor, nn

from lit_align.batches import Forest
from lit_align.models.build import HEAD_NAMES
from lit_align.scoring.adapter_loading import load_adapter
from lit_align.scoring.adapters import adapter_on, evaluating, has_adapters
from lit_align.scoring.policy import Policy


class RewardAdapter(nn.Module):
    """Scores with the base under the policy, a reward adapter on it, and that adapter's score head.

    The directory is what :class:`~lit_align.algorithms.reward.RewardModel` with LoRA exports. The policy is
    held outside the module tree, so that no parameter is listed twice; the score head is part of it.

    Args:
        path: directory with the adapter and its score head.
        name: that the adapter gets on the policy's model.
    """

    def __init__(self, path: str, name: str = "reward") -> None:
        super().__init__()
        self.path = path
        self.name = name
        self.score: nn.Linear | None = None
        self._policy: tuple[Policy, ...] = ()

    def attach(self, policy: Policy) -> None:
        """Load the adapter onto the policy's model, frozen. A second call does nothing.

        Raises:
            ValueError: the policy has no adapters, so that its base moves; or the directory has no head.
        """
        if self._policy:
            return
        model: Any = policy.model
        if not has_adapters(model):
            raise ValueError(
                "a reward adapter needs a base that stays as it is, but the policy has no adapters: give the "
                "policy LoRA, or export the reward model merged and take it as a model of its own"
            )
        others = load_adapter(model, self.name, self.path, trainable=False)
        heads = [value for key, value in others.items() if key.split(".")[-2:] in _HEADS]
        if len(heads) != 1 or len(heads[0]) != 1:
            found = ", ".join(f"{k} {list(v.shape)}" for k, v in others.items()) or "nothing"
            raise ValueError(
                f"{self.path} has no score head with one output beside its adapter (found {found}): is it "
                "what RewardModel with LoRA exports?"
            )
        width = heads[0].shape[1]
        dtype = torch.promote_types(heads[0].dtype, torch.float32)
        self.score = nn.Linear(width, 1, bias=False, dtype=dtype, device=next(model.parameters()).device)
        self.score.weight.data.copy_(heads[0])
        self.score.requires_grad_(False)
        self._policy = (policy,)

    def forward(self, batch: Forest) -> Tensor:
        """Rewards ``[C]`` in float32, in eval mode and without gradient; the score of the last token."""
        if self.score is None:
            raise RuntimeError("RewardAdapter is not attached to a policy: call attach(policy) first")
        (policy,) = self._policy
        with torch.no_grad(), evaluating(policy), adapter_on(policy.model, self.name):
            states = policy.last_states(batch)
            with torch.autocast(states.device.type, enabled=False):
                return self.score(states.to(self.score.weight.dtype)).squeeze(-1).float()


_HEADS = [[name, "weight"] for name in HEAD_NAMES]
