"""What a preference algorithm minimises: one preference loss, or several with weights."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from lit_align.losses import f_divergence
from lit_align.losses.preference import (
    INPUTS,
    PREFERENCE_LOSSES,
    Pair,
    PreferenceLoss,
    display_name,
    divergence_scores,
    preference_loss,
)


class PreferenceObjective:
    """A weighted sum of preference losses with its hyper-parameters, checked once, called per step.

    MPO (arXiv 2411.10442), the mixture: ``Σ_k w_k L_k``.

    Args:
        losses: a name of :data:`PREFERENCE_LOSSES`, a function, or several with their weights.
        divergence: a name of :data:`DIVERGENCES`, or a function from ``[B]`` log-ratios to ``[B]`` scores.
        alpha: which α-divergence; for ``alpha_divergence`` only.
        hyperparameters: by name (``beta``, ``label_smoothing``, ``tau``); each loss is given those that
            it takes; ``None`` stands for not given.

    Raises:
        ValueError: where a name is unknown; a loss lacks a hyper-parameter, or refuses its value; a
            hyper-parameter is taken by no loss; the divergence is none for which a loss is defined.

    >>> zeros, ones = torch.zeros(2), torch.ones(2)
    >>> PreferenceObjective("sigmoid", beta=0.1)(Pair(zeros, zeros, zeros, zeros, ones, ones, zeros))
    tensor([0.6931, 0.6931])
    """

    def __init__(
        self,
        losses: str | Callable[..., Tensor] | Mapping[Any, float],
        *,
        divergence: str | Callable[[Tensor], Tensor] = "reverse_kl",
        alpha: float | None = None,
        **hyperparameters: float | None,
    ) -> None:
        weights = losses if isinstance(losses, Mapping) else {losses: 1.0}
        if not weights:
            raise ValueError(f"no preference loss given; there are {', '.join(PREFERENCE_LOSSES)}")
        given = {name: value for name, value in hyperparameters.items() if value is not None}
        self.terms: dict[str, tuple[float, PreferenceLoss]] = {}
        for loss, weight in weights.items():
            name = display_name(loss)
            if name in self.terms:
                raise ValueError(f"two preference losses are called {name!r}; give one another name")
            self.terms[name] = (float(weight), preference_loss(loss))
        self.divergence = divergence_scores(divergence, alpha)
        self.hyperparameters = given
        if divergence not in ("reverse_kl", f_divergence.reverse_kl):
            self._check_divergence(display_name(divergence))
        self._check_hyperparameters()
        # Once now, so that a loss refuses the value of a hyper-parameter here and not on the first step.
        self(Pair(*torch.zeros(4, 2), *torch.ones(3, 2)))

    @property
    def couples_batch(self) -> bool:
        """Whether the value of a pair depends on the other pairs of the micro-batch."""
        return any(loss.couples_batch for _, loss in self.terms.values())

    @property
    def uses_reference(self) -> bool:
        """Whether any loss compares with the reference."""
        compares = {name for name in INPUTS if name.endswith(("scores", "logratios", "reference_logps"))}
        return any(not compares.isdisjoint(loss.inputs) for _, loss in self.terms.values())

    def each(self, pair: Pair) -> dict[str, Tensor]:
        """The value of each loss by name, without its weight: ``[B]`` each."""
        values = {}
        for name, (_, loss) in self.terms.items():
            given = {
                key: self.hyperparameters[key] for key in loss.hyperparameters & set(self.hyperparameters)
            }
            value = loss.function(*(self._input(pair, key) for key in loss.inputs), **given)
            if value.shape != pair.chosen_logps.shape:
                raise ValueError(
                    f"preference loss {name!r} returned shape {list(value.shape)} for "
                    f"{len(pair.chosen_logps)} pairs; it must return one value per pair, and no mean"
                )
            values[name] = value
        return values

    def __call__(self, pair: Pair) -> Tensor:
        """The weighted sum: ``[B]``, one value per pair."""
        values = self.each(pair)
        terms = [weight * values[name] for name, (weight, _) in self.terms.items()]
        return torch.stack(terms).sum(0)

    def _input(self, pair: Pair, name: str) -> Tensor:
        if name.endswith("_scores"):
            logratios: Tensor = getattr(pair, name.replace("_scores", "_logratios"))
            return self.divergence(logratios)
        value: Tensor = getattr(pair, name)
        return value

    def _check_divergence(self, divergence: str) -> None:
        refusing = [name for name, (_, loss) in self.terms.items() if not loss.allows_divergence]
        if refusing:
            allowed = [name for name, loss in PREFERENCE_LOSSES.items() if loss.allows_divergence]
            raise ValueError(
                f"{', '.join(refusing)}: defined for the reverse KL divergence only, got {divergence!r}. "
                f"Other divergences go with {', '.join(allowed)}"
            )

    def _check_hyperparameters(self) -> None:
        for name, (_, loss) in self.terms.items():
            missing = sorted(loss.required - set(self.hyperparameters))
            if missing:
                raise ValueError(f"preference loss {name!r} needs {' and '.join(missing)}")
        taken = frozenset[str]().union(*(loss.hyperparameters for _, loss in self.terms.values()))
        # A smoothing that is 0, or a beta for a loss without one, changes nothing: no need to complain.
        idle = {name for name, value in self.hyperparameters.items() if value and name not in taken}
        for name in sorted(idle - {"beta"}):
            takers = [key for key, loss in PREFERENCE_LOSSES.items() if name in loss.hyperparameters]
            raise ValueError(
                f"{name} is given, but {', '.join(self.terms)} would not use it"
                + (f"; {', '.join(takers)} would" if takers else "")
            )
