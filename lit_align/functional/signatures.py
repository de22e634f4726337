"""What a function asks for, by the names of its arguments: how a user's own function joins in by name.

Positional arguments are tensors, and their names say which; keyword-only arguments are hyper-parameters.
"""

import difflib
import inspect
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Signature:
    """What a function is given.

    Attributes:
        inputs: names of its positional arguments, in order.
        hyperparameters: names of its keyword-only arguments.
        required: those of them without a default.
    """

    inputs: tuple[str, ...]
    hyperparameters: frozenset[str]
    required: frozenset[str]

    @classmethod
    def of(cls, function: Callable[..., Tensor], known: Collection[str], kind: str) -> "Signature":
        """Read the signature of a function.

        Args:
            function: whose.
            known: names that a positional argument may have.
            kind: what such a function is called, for the message.

        Raises:
            ValueError: where a positional argument has another name, or takes a variable number.

        >>> def plain(ratios, advantages, *, scale=1.0): ...
        >>> Signature.of(plain, {"ratios", "advantages"}, "policy loss").inputs
        ('ratios', 'advantages')
        """
        inputs, hyperparameters, required = [], set(), set()
        for name, parameter in inspect.signature(function).parameters.items():
            if parameter.kind is parameter.KEYWORD_ONLY:
                hyperparameters.add(name)
                if parameter.default is parameter.empty:
                    required.add(name)
            elif name in known and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                inputs.append(name)
            else:
                shown = getattr(function, "__name__", type(function).__name__)
                article = "an" if kind[0] in "aeiou" else "a"
                raise ValueError(
                    f"{shown}: {article} {kind} cannot be given {name!r}. Its positional arguments are "
                    f"out of {', '.join(known)}; hyper-parameters come after a *"
                )
        return cls(tuple(inputs), frozenset(hyperparameters), frozenset(required))

    def check(self, given: Iterable[str], kind: str, name: str) -> None:
        """See that hyper-parameters fit.

        Raises:
            ValueError: where one is missing, or one is given that the function would ignore.
        """
        given = set(given)
        missing = sorted(self.required - given)
        if missing:
            raise ValueError(f"{kind} {name!r} needs {' and '.join(missing)}")
        ignored = sorted(given - self.hyperparameters)
        if ignored:
            takes = ", ".join(sorted(self.hyperparameters)) or "none"
            raise ValueError(
                f"{kind} {name!r} does not use {' and '.join(ignored)}; its hyper-parameters: {takes}"
            )


def unknown(kind: str, name: Any, known: Iterable[str]) -> str:
    """What to say of a name that nobody knows: the nearest one, and all there are."""
    known = list(known)
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"unknown {kind} {name!r}; {hint}There are {', '.join(known)}"
