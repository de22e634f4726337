"""From what a configuration says to a reward function."""

import difflib
from collections.abc import Callable
from typing import Any

from lit_align.rewards.inputs import RewardError
from lit_align.runtime import trust

#: Functions that come with the package, by their short names.
SHIPPED: dict[str, str] = {
    "exact_match": "lit_align.rewards.answers.exact_match",
    "numeric_answer": "lit_align.rewards.answers.numeric_answer",
    "math_answer": "lit_align.rewards.math_answer.math_answer",
    "regex": "lit_align.rewards.patterns.regex",
    "think_format": "lit_align.rewards.patterns.think_format",
    "length_target": "lit_align.rewards.lengths.length_target",
    "overlong_penalty": "lit_align.rewards.lengths.overlong_penalty",
    "repetition_penalty": "lit_align.rewards.repetition.repetition_penalty",
    "polite": "lit_align.rewards.manners.polite",
    "gives_advice": "lit_align.rewards.manners.gives_advice",
}


def resolve(function: str | Callable[..., Any]) -> Callable[..., Any]:
    """A reward function from its short name, its dotted path, or itself.

    Args:
        function: ``numeric_answer``, ``my_package.rewards.brief``, or a callable.

    Raises:
        RewardError: there is no such function, or it cannot be called.
        UntrustedImport: the command line may not import it; ``--trust my_package`` lets it.

    >>> resolve("lit_align.rewards.answers.exact_match") is resolve("exact_match")
    True
    """
    found: Any = function
    if isinstance(function, str):
        path = path_of(function)
        if "." not in path:
            close = difflib.get_close_matches(path, SHIPPED, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise RewardError(
                f"there is no reward function {path!r}; {hint}There are {', '.join(SHIPPED)}, and any other "
                "by its dotted path (my_package.rewards.brief)"
            )
        try:
            found = trust.load(path)
        except trust.UntrustedImport:
            raise
        except ValueError as error:
            raise RewardError(f"reward function {error}") from error
    if isinstance(found, type):
        # A class stands for an object of it, which may keep a state.
        found = found()
    if not callable(found):
        raise RewardError(f"{function!r} is a {type(found).__name__}, not a function")
    return found


def path_of(function: str) -> str:
    """The dotted path of a function's short name; other names as they are."""
    return SHIPPED.get(function, function)


def name_of(function: str | Callable[..., Any]) -> str:
    """What a function is called in metrics and messages.

    >>> name_of("my_package.rewards.brief"), name_of("polite")
    ('brief', 'polite')
    """
    if isinstance(function, str):
        return function.rpartition(".")[2]
    # functools.partial has its function's name inside.
    inner = getattr(function, "func", function)
    return str(getattr(inner, "__name__", type(inner).__name__))
