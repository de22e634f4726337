"""Preference losses by name, one to be mixed with another, and a place for your own.

A preference loss is a function of tensors. **The names of its positional arguments say what it is
given**, fields and properties of :class:`Pair` or the scores; its keyword-only arguments are its
hyper-parameters. So a loss of your own is one function and one line:

>>> def square(chosen_scores, rejected_scores, *, beta):
...     return (1 - beta * (chosen_scores - rejected_scores)) ** 2
>>> PreferenceLoss.of(square).inputs
('chosen_scores', 'rejected_scores')

:func:`register` gives it a name; :class:`lit_align.losses.objective.PreferenceObjective` mixes and calls.
"""

import difflib
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from torch import Tensor

from lit_align.losses import aot, apo, bco, discopop, dpo, exo, f_divergence, ipo, nca, rpo, sppo


@dataclass(frozen=True)
class Pair:
    """What a preference loss may look at: ``B`` pairs of completions, scored.

    Attributes:
        chosen_logps: ``[B]`` log-probs of the preferred completions under the policy, summed over tokens
            (with LD-DPO, its weighted sum).
        rejected_logps: ``[B]`` the same of the others.
        chosen_reference_logps: ``[B]`` the same of the preferred completions under the reference.
        rejected_reference_logps: ``[B]`` of the others.
        chosen_lengths: ``[B]`` tokens of the preferred completions that count; may be 0.
        rejected_lengths: ``[B]`` of the others.
        chosen_nll: ``[B]`` negative log-likelihoods of the preferred completions under the policy: the
            plain sum over tokens, which is ``-chosen_logps`` except with LD-DPO.
    """

    chosen_logps: Tensor
    rejected_logps: Tensor
    chosen_reference_logps: Tensor
    rejected_reference_logps: Tensor
    chosen_lengths: Tensor
    rejected_lengths: Tensor
    chosen_nll: Tensor

    @cached_property
    def chosen_logratios(self) -> Tensor:
        """``[B]`` Δ of the preferred completions: policy less reference."""
        return self.chosen_logps - self.chosen_reference_logps

    @cached_property
    def rejected_logratios(self) -> Tensor:
        """``[B]`` Δ of the others."""
        return self.rejected_logps - self.rejected_reference_logps


#: What a preference loss may ask for, by the name of a positional argument.
INPUTS = (
    "chosen_scores",
    "rejected_scores",
    "chosen_logratios",
    "rejected_logratios",
    "chosen_logps",
    "rejected_logps",
    "chosen_reference_logps",
    "rejected_reference_logps",
    "chosen_lengths",
    "rejected_lengths",
    "chosen_nll",
)
_PAST_THE_DIVERGENCE = {name for name in INPUTS if "logratios" in name or name.endswith("_logps")}


@dataclass(frozen=True)
class PreferenceLoss:
    """A preference loss and what there is to know before it is called.

    Attributes:
        function: takes ``[B]`` tensors, and hyper-parameters by keyword; returns ``[B]``.
        inputs: names of the tensors it takes, in order; out of :data:`INPUTS`.
        hyperparameters: names of its keyword-only arguments.
        required: those of them without a default.
        couples_batch: whether the value of a pair depends on the other pairs of the micro-batch, so
            that the cut of the batch changes the gradient.
    """

    function: Callable[..., Tensor]
    inputs: tuple[str, ...]
    hyperparameters: frozenset[str]
    required: frozenset[str]
    couples_batch: bool = False

    @classmethod
    def of(cls, function: Callable[..., Tensor], *, couples_batch: bool = False) -> "PreferenceLoss":
        """Read the signature of a function.

        Raises:
            ValueError: where a positional argument is none of :data:`INPUTS`, or takes a variable number.
        """
        inputs, hyperparameters, required = [], set(), set()
        for name, parameter in inspect.signature(function).parameters.items():
            if parameter.kind is parameter.KEYWORD_ONLY:
                hyperparameters.add(name)
                if parameter.default is parameter.empty:
                    required.add(name)
            elif name in INPUTS and parameter.kind is not parameter.VAR_KEYWORD:
                inputs.append(name)
            else:
                raise ValueError(
                    f"{display_name(function)}: a preference loss cannot be given {name!r}. Its positional "
                    f"arguments are tensors out of {', '.join(INPUTS)}; hyper-parameters come after a *"
                )
        return cls(function, tuple(inputs), frozenset(hyperparameters), frozenset(required), couples_batch)

    @property
    def allows_divergence(self) -> bool:
        """Whether it sees the reference through scores alone, so that another divergence has its effect."""
        return _PAST_THE_DIVERGENCE.isdisjoint(self.inputs)


#: Preference losses by name. Add to it with :func:`register`.
PREFERENCE_LOSSES: dict[str, PreferenceLoss] = {
    "sigmoid": PreferenceLoss.of(dpo.sigmoid),
    "cdpo": PreferenceLoss.of(dpo.cdpo),
    "robust": PreferenceLoss.of(dpo.robust),
    "hinge": PreferenceLoss.of(dpo.hinge),
    "sigmoid_norm": PreferenceLoss.of(dpo.sigmoid_norm),
    "ipo": PreferenceLoss.of(ipo.ipo),
    "exo_pair": PreferenceLoss.of(exo.exo_pair),
    "nca_pair": PreferenceLoss.of(nca.nca_pair),
    "bco_pair": PreferenceLoss.of(bco.bco_pair),
    "sppo_hard": PreferenceLoss.of(sppo.sppo_hard),
    "apo_zero": PreferenceLoss.of(apo.apo_zero),
    "apo_down": PreferenceLoss.of(apo.apo_down),
    "discopop": PreferenceLoss.of(discopop.discopop),
    "aot": PreferenceLoss.of(aot.aot, couples_batch=True),
    "aot_unpaired": PreferenceLoss.of(aot.aot_unpaired, couples_batch=True),
    "sft": PreferenceLoss.of(rpo.chosen_nll_per_token),
    "sft_token_mean": PreferenceLoss.of(rpo.chosen_nll_token_mean, couples_batch=True),
}

#: f-divergences by name: functions from log-ratios to scores.
DIVERGENCES: dict[str, Callable[..., Tensor]] = {
    "reverse_kl": f_divergence.reverse_kl,
    "forward_kl": f_divergence.forward_kl,
    "js_divergence": f_divergence.js_divergence,
    "alpha_divergence": f_divergence.alpha_divergence,
}


def register(name: str, function: Callable[..., Tensor], *, couples_batch: bool = False) -> None:
    """Make a preference loss known by a name, for configuration files.

    Args:
        name: what to call it.
        function: takes tensors named as in :data:`INPUTS` and hyper-parameters by keyword; returns ``[B]``.
        couples_batch: whether the value of a pair depends on the other pairs of the micro-batch.

    Raises:
        ValueError: where the name is taken, or the arguments of the function are unknown.
    """
    if name in PREFERENCE_LOSSES:
        raise ValueError(f"there is a preference loss {name!r} already; choose another name")
    PREFERENCE_LOSSES[name] = PreferenceLoss.of(function, couples_batch=couples_batch)


def preference_loss(loss: str | Callable[..., Tensor]) -> PreferenceLoss:
    """A preference loss by name, or a function as one.

    Raises:
        ValueError: where the name is unknown, or the arguments of the function are.
    """
    if isinstance(loss, str):
        if loss not in PREFERENCE_LOSSES:
            raise ValueError(unknown("preference loss", loss, PREFERENCE_LOSSES))
        return PREFERENCE_LOSSES[loss]
    registered = [entry for entry in PREFERENCE_LOSSES.values() if entry.function is loss]
    return registered[0] if registered else PreferenceLoss.of(loss)


def divergence_scores(
    divergence: str | Callable[[Tensor], Tensor], alpha: float | None = None
) -> Callable[[Tensor], Tensor]:
    """The function from ``[B]`` log-ratios to ``[B]`` scores.

    Args:
        divergence: a name of :data:`DIVERGENCES`, or such a function.
        alpha: which α-divergence; for ``alpha_divergence`` only.

    Raises:
        ValueError: where the name is unknown, alpha is missing, or there is nothing to use it for.
    """
    if isinstance(divergence, str) and divergence not in DIVERGENCES:
        raise ValueError(unknown("divergence", divergence, DIVERGENCES))
    function = DIVERGENCES[divergence] if isinstance(divergence, str) else divergence
    if function is f_divergence.alpha_divergence:
        if alpha is None:
            raise ValueError("alpha_divergence needs alpha: 0 is the forward KL, 1 the reverse KL")
        return partial(function, alpha=alpha)
    if alpha is not None:
        raise ValueError(
            f"alpha is for alpha_divergence only, got alpha={alpha} with {display_name(divergence)!r}"
        )
    return function


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """What to say of a name that nobody knows: the nearest one, and all there are."""
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"unknown {kind} {name!r}; {hint}There are {', '.join(known)}"


def display_name(function: Any) -> str:
    """The name of a loss: its own where it is a string, else the function's."""
    if isinstance(function, str):
        return function
    return getattr(function, "__name__", type(function).__name__)
