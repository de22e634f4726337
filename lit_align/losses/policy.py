"""Policy losses by name, what each takes its ratios and its mean by, and a place for your own.

A policy loss is a function of tensors. **The names of its positional arguments say what it is given**,
fields and properties of :class:`Decisions`; its keyword-only arguments are its hyper-parameters. It returns
one value per token. So a loss of your own is one function and one line:

>>> def plain(ratios, advantages):
...     return -ratios * advantages
>>> PolicyLoss.of(plain).normaliser
'token_mean'

:func:`register` gives it a name; :class:`PolicyObjective` calls it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lit_align.functional.importance import IMPORTANCE
from lit_align.functional.normalisers import NORMALISERS, TokenWeights
from lit_align.functional.signatures import Signature, unknown
from lit_align.losses import a2c, cispo, grpo, ppo, sapo, vespo


@dataclass(frozen=True)
class Decisions:
    """What a policy loss may look at: ``N`` tokens that a policy chose, and what came of it.

    Attributes:
        logps: ``[N]`` log-probs of the tokens under the present policy, with gradient.
        old_logps: ``[N]`` the same under the policy that sampled them.
        advantages: ``[N]``; those of a completion stand with each of its tokens.
        mask: ``[N]`` non-zero where the policy chose the token.
        sequence: ``[N]`` index of the completion each token belongs to.
        completions: ``C``, the number of completions.
        importance: level of the ratios, a name of :data:`lit_align.functional.importance.IMPORTANCE`.
    """

    logps: Tensor
    old_logps: Tensor
    advantages: Tensor
    mask: Tensor
    sequence: Tensor
    completions: int
    importance: str = "token"

    @cached_property
    def log_ratios(self) -> Tensor:
        """``[N]`` log-ratios of the present policy to the old one, at the level of importance."""
        level = IMPORTANCE[self.importance]
        return level(self.logps, self.old_logps, self.mask, self.sequence, self.completions)

    @cached_property
    def ratios(self) -> Tensor:
        """``[N]`` importance ratios; 1 where the policy did not choose the token."""
        return self.log_ratios.exp()


#: What a policy loss may ask for, by the name of a positional argument.
INPUTS = (
    "ratios", "log_ratios", "logps", "old_logps", "advantages", "mask", "sequence", "completions",
)  # fmt: skip


@dataclass(frozen=True)
class PolicyLoss:
    """A policy loss and what there is to know before it is called.

    Attributes:
        function: takes ``[N]`` tensors, and hyper-parameters by keyword; returns ``[N]``.
        signature: what it asks for.
        importance: level of its ratios.
        normaliser: how tokens are weighed.
        defaults: hyper-parameters of the paper, where they are not the function's own.
    """

    function: Callable[..., Tensor]
    signature: Signature
    importance: str
    normaliser: str
    defaults: dict[str, float]

    @classmethod
    def of(
        cls,
        function: Callable[..., Tensor],
        *,
        importance: str = "token",
        normaliser: str = "token_mean",
        **defaults: float,
    ) -> "PolicyLoss":
        """Read the signature of a function.

        Args:
            function: takes tensors named as in :data:`INPUTS` and hyper-parameters by keyword.
            importance: name of :data:`lit_align.functional.importance.IMPORTANCE`.
            normaliser: name of :data:`lit_align.functional.normalisers.NORMALISERS`.
            defaults: hyper-parameters.

        Raises:
            ValueError: where a name is unknown.
        """
        if importance not in IMPORTANCE:
            raise ValueError(unknown("level of importance", importance, IMPORTANCE))
        if normaliser not in NORMALISERS:
            raise ValueError(unknown("normaliser", normaliser, NORMALISERS))
        signature = Signature.of(function, INPUTS, "policy loss")
        return cls(function, signature, importance, normaliser, defaults)


_GSPO_BOUNDS = {"clip_range": 3e-4, "clip_range_high": 4e-4}
_LUSPO_BOUNDS = {"clip_range": 2e-3, "clip_range_high": 2.5e-3}

#: Policy losses by name. Add to it with :func:`register`.
POLICY_LOSSES: dict[str, PolicyLoss] = {
    "ppo": PolicyLoss.of(ppo.clipped_surrogate),
    "a2c": PolicyLoss.of(a2c.policy_gradient),
    "reinforce_pp": PolicyLoss.of(ppo.clipped_surrogate),
    "rloo": PolicyLoss.of(ppo.clipped_surrogate, importance="sequence_sum", normaliser="sequence_mean"),
    "grpo": PolicyLoss.of(grpo.grpo, normaliser="sequence_mean"),
    "dr_grpo": PolicyLoss.of(grpo.grpo, normaliser="constant"),
    "dapo": PolicyLoss.of(grpo.grpo, clip_range_high=0.28),
    # The peer's mean over the tokens of a micro-batch; over a window it is DAPO's, without clip-higher.
    "bnpo": PolicyLoss.of(grpo.grpo),
    "gspo": PolicyLoss.of(grpo.grpo, importance="sequence", normaliser="sequence_mean", **_GSPO_BOUNDS),
    "luspo": PolicyLoss.of(grpo.grpo, importance="sequence", normaliser="sequence_sum", **_LUSPO_BOUNDS),
    "cispo": PolicyLoss.of(cispo.cispo),
    "sapo": PolicyLoss.of(sapo.sapo, normaliser="sequence_mean"),
    "vespo": PolicyLoss.of(vespo.vespo),
}


def register(
    name: str,
    function: Callable[..., Tensor],
    *,
    importance: str = "token",
    normaliser: str = "token_mean",
    **defaults: float,
) -> None:
    """Make a policy loss known by a name, for configuration files.

    Raises:
        ValueError: where the name is taken, or another name is unknown.
    """
    if name in POLICY_LOSSES:
        raise ValueError(f"there is a policy loss {name!r} already; choose another name")
    POLICY_LOSSES[name] = PolicyLoss.of(function, importance=importance, normaliser=normaliser, **defaults)


def policy_loss(loss: str | Callable[..., Tensor]) -> PolicyLoss:
    """A policy loss by name, or a function as one.

    Raises:
        ValueError: where the name is unknown, or the arguments of the function are.
    """
    if isinstance(loss, PolicyLoss):
        return loss
    if not isinstance(loss, str):
        return PolicyLoss.of(loss)
    if loss not in POLICY_LOSSES:
        raise ValueError(unknown("policy loss", loss, POLICY_LOSSES))
    return POLICY_LOSSES[loss]


class PolicyObjective:
    """A policy loss with its hyper-parameters, checked once, called per step.

    Args:
        loss: a name of :data:`POLICY_LOSSES`, or a function.
        importance: level of the ratios; the loss's own where it is ``None``.
        normaliser: how tokens are weighed; the loss's own where it is ``None``.
        length: for the normaliser ``constant``: the longest completion that may be generated.
        hyperparameters: by name; ``None`` stands for not given.

    Raises:
        ValueError: where a name is unknown, a hyper-parameter is missing, refused or taken by nobody.

    >>> objective = PolicyObjective("grpo", clip_range=0.2)
    >>> one = torch.ones(2)
    >>> tokens = Decisions(-one, -one, torch.tensor([1.0, -2.0]), one, torch.tensor([0, 1]), 2)
    >>> objective(tokens)
    tensor([-1.,  2.])
    """

    def __init__(
        self,
        loss: str | Callable[..., Tensor],
        *,
        importance: str | None = None,
        normaliser: str | None = None,
        length: int | None = None,
        **hyperparameters: float | None,
    ) -> None:
        found = policy_loss(loss)
        self.name = loss if isinstance(loss, str) else getattr(loss, "__name__", type(loss).__name__)
        self.loss = PolicyLoss.of(
            found.function,
            importance=importance or found.importance,
            normaliser=normaliser or found.normaliser,
            **found.defaults,
        )
        given = {key: value for key, value in hyperparameters.items() if value is not None}
        self.hyperparameters: dict[str, Any] = {**found.defaults, **given}
        self.loss.signature.check(self.hyperparameters, "policy loss", self.name)
        if (self.loss.normaliser == "constant") != (length is not None):
            raise ValueError(
                f"policy loss {self.name!r} is normalised by {self.loss.normaliser!r}: the length of the "
                f"longest completion goes with 'constant' and with nothing else, got length={length}"
            )
        self._normaliser_options = {} if length is None else {"length": length}
        # Once now, so that a loss refuses the value of a hyper-parameter here and not on the first step.
        zero, where = torch.zeros(1), torch.zeros(1, dtype=torch.long)
        tokens = Decisions(zero, zero, zero, zero + 1, where, 1)
        self(tokens)
        self.token_weights(tokens)

    def __call__(self, tokens: Decisions) -> Tensor:
        """The loss of each token: ``[N]``, not yet weighed.

        Raises:
            ValueError: where the function returned another shape.
        """
        tokens = self.at_own_level(tokens)
        inputs = (getattr(tokens, key) for key in self.loss.signature.inputs)
        value = self.loss.function(*inputs, **self.hyperparameters)
        if value.shape != tokens.logps.shape:
            raise ValueError(
                f"policy loss {self.name!r} returned shape {list(value.shape)} for {len(tokens.logps)} "
                "tokens; it must return one value per token, and no mean"
            )
        return value

    def at_own_level(self, tokens: Decisions) -> Decisions:
        """The same tokens with ratios at the level of importance of this loss."""
        if tokens.importance == self.loss.importance:
            return tokens
        return replace(tokens, importance=self.loss.importance)

    def token_weights(self, tokens: Decisions) -> TokenWeights:
        """What each token counts, and what the weighted sum is divided by."""
        weigh = NORMALISERS[self.loss.normaliser]
        return weigh(tokens.mask, tokens.sequence, tokens.completions, **self._normaliser_options)
