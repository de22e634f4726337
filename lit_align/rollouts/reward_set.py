"""All that judges completions, as one object: functions, models and adapters with their weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lit_align.batches import Forest
from lit_align.outputs import Metric
from lit_align.rewards.function import RewardFunction
from lit_align.rewards.inputs import RewardInputs, parameters_of
from lit_align.rewards.isolated import Worker
from lit_align.rewards.resolve import path_of, resolve
from lit_align.rewards.results import Judgement
from lit_align.rollouts.reward_config import RewardConfig, RewardsLike, configurations

__all__ = ["RewardConfig", "RewardResult", "RewardSet", "RewardsLike"]


@dataclass(frozen=True)
class RewardResult:
    """What a set of rewards says about a batch of completions.

    Attributes:
        table: ``[C, R]`` float32, for each completion what each reward gives it; the sum over its tokens
            where a function rewards tokens. NaN where it was not scored.
        scores: ``[C, R]`` the same without what is already in ``token_rewards`` (0 there), for
            algorithms that reward tokens: ``scores`` at the end of a completion, and ``token_rewards``.
        weights: ``[R]``.
        names: ``R`` names.
        token_rewards: ``[N]`` weighted rewards of tokens, summed over the functions that give any; ``None``
            where none does.
        metrics: what to report.
    """

    table: Tensor
    scores: Tensor
    weights: Tensor
    names: tuple[str, ...]
    token_rewards: Tensor | None = None
    metrics: dict[str, Metric] = field(default_factory=dict)


class RewardSet(nn.Module):
    """Rewards with weights. Built from a description, it needs `attach` only where models are in it.

    Models in it are frozen and in evaluation mode, whatever mode the module around it is in.

    Args:
        configs: descriptions, as `lit_align.rollouts.reward_config.configurations` gives them.
    """

    def __init__(self, configs: Sequence[RewardConfig]) -> None:
        super().__init__()
        self.configs = list(configs)
        self.names = tuple(config.shown_name for config in configs)
        self.functions = {
            config.shown_name: _function(config) for config in configs if config.kind == "function"
        }
        #: Functions that are modules, and models once they are attached, so that they move with this module.
        self.models = nn.ModuleDict()
        for i, config in enumerate(configs):
            if isinstance(config.function, nn.Module):
                self.models[str(i)] = config.function.requires_grad_(False)
        self.eval()

    @classmethod
    def build(cls, spec: RewardsLike) -> "RewardSet":
        """A set from whatever names rewards.

        Args:
            spec: see `lit_align.rollouts.reward_config.configurations`; a `RewardSet` is returned as it is.

        Raises:
            RewardError: there is nothing, or something is no reward.
            UntrustedImport: the command line may not import a function.
        """
        return spec if isinstance(spec, RewardSet) else cls(configurations(spec))

    def attach(self, policy: nn.Module, tokenizer: Any) -> None:
        """Load the models; called once, when the policy has its weights.

        Args:
            policy: the scorer in training.
            tokenizer: the policy's.
        """
        from lit_align.rollouts.reward_models import build_model

        for i, config in enumerate(self.configs):
            if config.kind != "function" and str(i) not in self.models:
                self.models[str(i)] = build_model(config, policy, tokenizer).requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "RewardSet":
        """Stay in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, forest: Forest, tokenizer: Any, step: int = 0) -> RewardResult:
        """Judge a batch of completions.

        Async functions wait at the same time, while the others and the models do their work.

        Args:
            forest: ``C`` completions, with ``records`` where functions ask for columns.
            tokenizer: the policy's.
            step: of training.

        Raises:
            RewardError: a function asks for what there is not, or returns what is no reward.
            TooManyFailures: a function left too many of the last completions without a reward.
        """
        inputs = RewardInputs.from_forest(forest, tokenizer, step) if self.functions else None
        waiting = {
            name: function.start(inputs)
            for name, function in self.functions.items()
            if inputs is not None and function.waits
        }
        made: dict[str, Judgement] = {}
        # Models first: a function that fails here alone leaves no other process inside a sharded model.
        for i, (name, config) in enumerate(zip(self.names, self.configs, strict=True)):
            if config.kind != "function":
                made[name] = Judgement(self._model(i)(forest, tokenizer).float().cpu())
        for name, function in self.functions.items():
            if inputs is not None and name not in waiting:
                made[name] = function(inputs)
        made |= {name: call.result() for name, call in waiting.items()}
        return _result([made[name] for name in self.names], self.names, self.configs, forest)

    def reward_state(self) -> dict[str, Any]:
        """Plain data for a checkpoint: recent failures, and the states that functions keep."""
        return {name: function.state() for name, function in self.functions.items()}

    def load_reward_state(self, state: Mapping[str, Any]) -> None:
        """Take up what `reward_state` gave; a function that was not there then begins anew."""
        for name, function in self.functions.items():
            if name in state:
                function.load_state(state[name])

    def _model(self, i: int) -> nn.Module:
        if str(i) not in self.models:
            raise RuntimeError(f"reward {self.names[i]!r} is a model: call attach(policy, tokenizer) first")
        return self.models[str(i)]


def _function(config: RewardConfig) -> RewardFunction:
    name = config.shown_name
    function = resolve(config.function or "")
    # So that a function that cannot be asked is told before anything is trained.
    parameters_of(function, name)
    return RewardFunction(
        function,
        name,
        config.options,
        timeout=config.timeout,
        max_failures=config.max_failures,
        allow_none=config.allow_none,
        messages=config.messages,
        worker=Worker(path_of(str(config.function))) if config.isolate else None,
    )


def _result(
    made: Sequence[Judgement], names: tuple[str, ...], configs: Sequence[RewardConfig], forest: Forest
) -> RewardResult:
    device = forest.device
    table = torch.stack([one.rewards for one in made], dim=-1).to(device)
    weights = torch.tensor([config.weight for config in configs], dtype=torch.float32, device=device)
    scores, spread = table.clone(), None
    for r, one in enumerate(made):
        if one.tokens is None:
            continue
        scores[:, r] = torch.where(table[:, r].isnan(), torch.nan, 0.0)
        rewards = [
            torch.zeros(length) if tokens is None else tokens
            for tokens, length in zip(one.tokens, forest.completion_lengths, strict=True)
        ]
        of_tokens = weights[r] * torch.cat(rewards).to(device)
        spread = of_tokens if spread is None else spread + of_tokens
    metrics: dict[str, Metric] = {}
    for name, one in zip(names, made, strict=True):
        metrics |= _metrics(name, one, device)
    return RewardResult(table, scores, weights, names, spread, metrics)


def _metrics(name: str, made: Judgement, device: torch.device) -> dict[str, Metric]:
    rewards = made.rewards.to(device)
    scored = ~rewards.isnan()
    found = rewards[scored]
    spread = found.std() if len(found) > 1 else found.sum() * 0
    # One value per call, counted by the completions it is about; a single reward has no spread.
    many = scored.sum().float() * (len(found) > 1)
    metrics = {
        f"rewards/{name}/mean": Metric(found.sum(), scored.sum().float()),
        f"rewards/{name}/std": Metric(spread * many, many),
        f"rewards/{name}/failures": Metric(
            torch.tensor(float(len(made.failures)), device=device),
            torch.tensor(float(len(rewards)), device=device),
        ),
    }
    for key, values in made.reported.items():
        metrics[f"rewards/{name}/{key}"] = Metric.mean(torch.tensor(values, device=device))
    return metrics
