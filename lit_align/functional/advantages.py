"""Advantage estimators by name, and a place for your own.

An estimator is a function. **The names of its positional arguments say what it is given**, fields of
:class:`Experience`; its keyword-only arguments are its hyper-parameters. It returns one advantage per
completion, or per token if it asks for ``sequence``. So an estimator of your own is one function and one
line:

>>> def sign(rewards):
...     return rewards.sign().nan_to_num()
>>> AdvantageEstimator.of(sign).per_token
False

:func:`register` gives it a name.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from lit_align.functional import group_advantages
from lit_align.functional.gae import discounted_returns
from lit_align.functional.gae import gae as gae_estimate
from lit_align.functional.group_advantages import Reduce
from lit_align.functional.signatures import Signature, unknown
from lit_align.functional.whitening import moments, whiten


def _identity(sums: Tensor) -> Tensor:
    return sums


@dataclass(frozen=True)
class Experience:
    """What an estimator may look at: completions, rewarded.

    Attributes:
        rewards: ``[C]`` one reward per completion; NaN where unscored.
        reward_table: ``[C, R]`` the rewards of each reward function; NaN where one did not apply.
        reward_weights: ``[R]`` weights of the reward functions.
        group: ``[C]`` which prompt each completion belongs to.
        groups: ``P``, the number of prompts.
        token_rewards: ``[N]`` reward of each token, KL penalty included.
        values: ``[N]`` value of the state in which each token is chosen.
        mask: ``[N]`` non-zero where the policy chose the token.
        sequence: ``[N]`` index of the completion each token belongs to.
        completions: ``C``, the number of completions.
        final_values: ``[C]`` value after the last token, of completions that were cut off; 0 for others.
        sum_over_ranks: adds a tensor of sums over all processes.
    """

    rewards: Tensor | None = None
    reward_table: Tensor | None = None
    reward_weights: Tensor | None = None
    group: Tensor | None = None
    groups: int | None = None
    token_rewards: Tensor | None = None
    values: Tensor | None = None
    mask: Tensor | None = None
    sequence: Tensor | None = None
    completions: int | None = None
    final_values: Tensor | None = None
    sum_over_ranks: Reduce = field(default=_identity)


#: What an estimator may ask for, by the name of a positional argument.
INPUTS = tuple(Experience.__dataclass_fields__)
# Absent is an answer: every completion came to its end.
_MAY_BE_ABSENT = {"final_values"}


def gae(
    token_rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    sequence: Tensor,
    final_values: Tensor | None,
    *,
    gamma: float = 1.0,
    gae_lambda: float = 0.95,
) -> Tensor:
    """Generalised advantage estimation, as :func:`lit_align.functional.gae.gae`, advantages alone.

    Args:
        token_rewards: ``[N]`` reward of each token.
        values: ``[N]`` value of the state in which each token is chosen.
        mask: ``[N]`` non-zero where the policy chose the token.
        sequence: ``[N]`` index of the completion each token belongs to.
        final_values: ``[C]`` value after the last token, or ``None`` for 0.
        gamma: discount per token.
        gae_lambda: 0 is the one-step error, 1 the whole return less the value.

    Returns:
        ``[N]`` not whitened; returns are these plus the values.
    """
    return gae_estimate(
        token_rewards, values, mask, sequence, gamma=gamma, gae_lambda=gae_lambda, final_values=final_values
    ).advantages


def reinforce_pp(
    token_rewards: Tensor, mask: Tensor, sequence: Tensor, sum_over_ranks: Reduce, *, gamma: float = 1.0
) -> Tensor:
    """REINFORCE++: no critic and no groups; the mean of the whole batch is the baseline.

    REINFORCE++ (arXiv 2501.03262): ``A_t = r - β Σ_{i≥t} KL_i``, then whitened over all tokens of the batch.

    Args:
        token_rewards: ``[N]`` reward of each token: the KL penalty, and the score at the end.
        mask: ``[N]`` non-zero where the policy chose the token.
        sequence: ``[N]`` index of the completion each token belongs to.
        sum_over_ranks: adds sums over processes.
        gamma: discount per token.

    Returns:
        ``[N]``; 0 where a token does not count.
    """
    returns = discounted_returns(token_rewards, mask, sequence, gamma=gamma)
    return whiten(returns, mask, sum_over_ranks(moments(returns, mask)))


@dataclass(frozen=True)
class AdvantageEstimator:
    """An estimator and what there is to know before it is called.

    Attributes:
        function: takes what it names, hyper-parameters by keyword; returns ``[C]``, or ``[N]``.
        signature: what it asks for.
    """

    function: Callable[..., Tensor]
    signature: Signature

    @classmethod
    def of(cls, function: Callable[..., Tensor]) -> "AdvantageEstimator":
        """Read the signature of a function.

        Raises:
            ValueError: where a positional argument is none of :data:`INPUTS`.
        """
        return cls(function, Signature.of(function, INPUTS, "advantage estimator"))

    @property
    def per_token(self) -> bool:
        """Whether it gives an advantage per token, and not per completion."""
        return "sequence" in self.signature.inputs

    @property
    def needs_values(self) -> bool:
        """Whether it takes a critic."""
        return "values" in self.signature.inputs

    def __call__(self, experience: Experience, **hyperparameters: Any) -> Tensor:
        """The advantages: ``[N]`` where :attr:`per_token`, else ``[C]``.

        Raises:
            ValueError: where the experience lacks what the estimator asks for, or a hyper-parameter does
                not fit.
        """
        name = getattr(self.function, "__name__", "advantages")
        self.signature.check(hyperparameters, "advantage estimator", name)
        given = {key: getattr(experience, key) for key in self.signature.inputs}
        absent = [k for k, value in given.items() if value is None and k not in _MAY_BE_ABSENT]
        if absent:
            raise ValueError(
                f"advantage estimator {name!r} needs {' and '.join(absent)}, which are not there"
            )
        return self.function(*given.values(), **hyperparameters)


#: Advantage estimators by name. Add to it with :func:`register`.
ADVANTAGE_ESTIMATORS: dict[str, AdvantageEstimator] = {
    "gae": AdvantageEstimator.of(gae),
    "group_normalised": AdvantageEstimator.of(group_advantages.group_normalised),
    "group_mean": AdvantageEstimator.of(group_advantages.group_mean),
    "batch_normalised": AdvantageEstimator.of(group_advantages.batch_normalised),
    "gdpo": AdvantageEstimator.of(group_advantages.gdpo),
    "leave_one_out": AdvantageEstimator.of(group_advantages.leave_one_out),
    "leave_one_out_normalised": AdvantageEstimator.of(group_advantages.leave_one_out_normalised),
    "reinforce_pp": AdvantageEstimator.of(reinforce_pp),
    "reinforce_pp_baseline": AdvantageEstimator.of(group_advantages.reinforce_pp_baseline),
}


def register(name: str, function: Callable[..., Tensor]) -> None:
    """Make an estimator known by a name, for configuration files.

    Raises:
        ValueError: where the name is taken, or the arguments of the function are unknown.
    """
    if name in ADVANTAGE_ESTIMATORS:
        raise ValueError(f"there is an advantage estimator {name!r} already; choose another name")
    ADVANTAGE_ESTIMATORS[name] = AdvantageEstimator.of(function)


def advantage_estimator(estimator: str | Callable[..., Tensor]) -> AdvantageEstimator:
    """An estimator by name, or a function as one.

    Raises:
        ValueError: where the name is unknown, or the arguments of the function are.
    """
    if isinstance(estimator, AdvantageEstimator):
        return estimator
    if not isinstance(estimator, str):
        return AdvantageEstimator.of(estimator)
    if estimator not in ADVANTAGE_ESTIMATORS:
        raise ValueError(unknown("advantage estimator", estimator, ADVANTAGE_ESTIMATORS))
    return ADVANTAGE_ESTIMATORS[estimator]
