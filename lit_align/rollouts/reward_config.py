"""What judges completions, as plain data: a function, a model, a classifier or an adapter, with a weight."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_align.models.config import check_fields
from lit_align.rewards.inputs import RewardError
from lit_align.rewards.resolve import name_of

if TYPE_CHECKING:
    FunctionLike = str | Callable[..., Any] | None
    ModelLike = Any
else:
    # What the command line's parser sees; Python may give the objects themselves.
    FunctionLike = str | None
    ModelLike = str | None

#: Of these fields exactly one says what the reward is.
KINDS = ("function", "model", "classifier", "adapter")


@dataclass
class RewardConfig:
    """One reward: exactly one of `function`, `model`, `classifier` and `adapter`, and how it counts."""

    function: FunctionLike = None
    """A reward function: the short name of a shipped one (`numeric_answer`), or a dotted path."""

    model: ModelLike = None
    """A reward model: directory or Hub name of a sequence classifier with one output."""

    classifier: ModelLike = None
    """A sequence classifier with several labels (sentiment): directory or Hub name. Options: `label`,
    `output` (logit, probability or log_odds), `part` (text or completion)."""

    adapter: str | None = None
    """A reward adapter on the policy's own base: the directory that RewardModel with LoRA exports."""

    weight: float = 1.0
    """Factor of this reward in the sum."""

    options: dict[str, Any] = field(default_factory=dict)
    """Arguments of the function, or options of the classifier."""

    name: str | None = None
    """In metrics and messages; by default that of the function or the directory."""

    timeout: float | None = 60.0
    """Seconds that a call of the function may take; null for no limit."""

    max_failures: float = 0.1
    """Share of the last 1000 completions that a function may leave without a reward before the run stops."""

    allow_none: bool = False
    """None means that the function has nothing to say of a completion, and is no failure."""

    messages: bool = False
    """Give the function replies to conversations as messages, as TRL does, instead of text."""

    isolate: bool = False
    """Run the function in a process of its own that is killed when it is out of time."""

    batch_size: int = 16
    """Completions that a model judges at once."""

    def __post_init__(self) -> None:
        given = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            found = f"found {' and '.join(given)}" if given else "found none of them"
            raise RewardError(f"a reward is exactly one of {', '.join(KINDS)}; {found}")
        if self.isolate and not isinstance(self.function, str):
            raise RewardError(
                "isolate: another process has to import the function, so give it by its dotted path"
            )
        if self.batch_size < 1:
            raise RewardError(f"batch_size is {self.batch_size}; it must be at least 1")

    @property
    def kind(self) -> str:
        """Which of the kinds it is."""
        return next(kind for kind in KINDS if getattr(self, kind) is not None)

    @property
    def shown_name(self) -> str:
        """The name in metrics and messages."""
        if self.name is not None:
            return self.name
        if self.kind == "function":
            return name_of(self.function)  # type: ignore[arg-type]
        value = getattr(self, self.kind)
        if isinstance(value, str):
            # runs/reward/0/model says most by what it stands in, but is told by its last part.
            return Path(value).name
        return self.kind


if TYPE_CHECKING:
    RewardsLike = (
        RewardConfig | str | Callable[..., Any] | Mapping[str, Any] | list[Any] | tuple[Any, ...] | None
    )
else:
    RewardsLike = RewardConfig | list[RewardConfig | str] | dict[str, float] | str | None


def configurations(spec: Any) -> list[RewardConfig]:
    """Every reward that the user gave, with a name of its own.

    Args:
        spec: a function (callable, short name or dotted path), a directory or Hub name of a reward model (a
            string with a slash), a `RewardConfig` or the dict of its fields, a list of these, or a mapping
            from functions or models to weights.

    Raises:
        RewardError: nothing is given, fields are unknown, or two rewards have one name.

    >>> [(c.shown_name, c.weight) for c in configurations({"polite": 1.0, "repetition_penalty": 0.5})]
    [('polite', 1.0), ('repetition_penalty', 0.5)]
    """
    if spec is None or (isinstance(spec, list | tuple | Mapping) and not spec):
        raise RewardError("no rewards: give a function, a model, or a list of them (rewards: numeric_answer)")
    if isinstance(spec, Mapping) and not _is_config(spec):
        configs = [_weighted(one, weight) for one, weight in spec.items()]
    elif isinstance(spec, list | tuple):
        configs = [_config(one) for one in spec]
    else:
        configs = [_config(spec)]
    names = [config.shown_name for config in configs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise RewardError(f"two rewards are called {twice[0]!r}; give one of them another name (name: ...)")
    return configs


def _config(value: Any) -> RewardConfig:
    if isinstance(value, RewardConfig):
        return value
    if isinstance(value, Mapping):
        check_fields(RewardConfig, dict(value), "rewards")
        return RewardConfig(**value)
    if isinstance(value, str) or hasattr(value, "__fspath__"):
        text = str(value)
        if text.lstrip().startswith("{"):
            # A mapping that the command line's parser found no type for, because of a field's name.
            return _config(_mapping(text))
        is_place = "/" in text or Path(text).is_dir()
        return RewardConfig(model=text) if is_place else RewardConfig(function=text)
    if callable(value):
        return RewardConfig(function=value)
    raise RewardError(f"a reward is a function, a name or a RewardConfig, not {type(value).__name__}")


def _mapping(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise RewardError(f"{text!r} is no reward: neither a name nor a mapping ({error})") from error


def _weighted(value: Any, weight: Any) -> RewardConfig:
    if isinstance(weight, bool) or not isinstance(weight, int | float):
        raise RewardError(
            f"a mapping of rewards gives each its weight; {value!r} has {weight!r}. (One reward with options "
            f"is a mapping with one of {', '.join(KINDS)})"
        )
    config = _config(value)
    config.weight = float(weight)
    return config


def _is_config(spec: Mapping[Any, Any]) -> bool:
    return any(f.name in spec for f in fields(RewardConfig))
