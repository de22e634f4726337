"""Several adapters worked into one, for a moment."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from lit_align.scoring.adapters import adapter_on

#: Ways to combine adapters. ``cat`` is the weighted sum of what they add, exactly; ``svd`` the same, cut to
#: the rank of one; ``linear`` combines the factors instead (peft's rough approximation); ``ties``
#: (arXiv 2306.01708) and ``dare_linear``, ``dare_ties`` (arXiv 2311.03099) drop small or random weights
#: first.
Combination = Literal["cat", "linear", "svd", "ties", "dare_linear", "dare_ties"]

_MIXED = "lit_align_mixed"


@contextmanager
def mixed_adapter(
    model: Any, weights: Mapping[str, float], combination: Combination, density: float | None
) -> Iterator[None]:
    """The weighted combination of adapters as the active one inside the block; all as before afterwards.

    Args:
        model: of peft.
        weights: by the name of an adapter that the model has, or by a directory that holds one.
        combination: peft's way of combining them.
        density: share of the weights that is kept, for the ways that drop some.

    Raises:
        ValueError: a name is neither, or the adapters cannot be combined in that way.
    """
    flags = [(p, p.requires_grad) for p in model.parameters()]
    added: list[str] = []
    device = next(model.parameters()).device
    # peft draws the start of each new adapter, and what DARE drops, from the global generator.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        try:
            names = [_present(model, name, added) for name in weights]
            options = {} if density is None else {"density": density}
            model.add_weighted_adapter(
                names, list(weights.values()), _MIXED, combination_type=combination, **options
            )
            added.append(_MIXED)
            with adapter_on(model, _MIXED):
                yield
        finally:
            for name in added:
                model.delete_adapter(name)
            for parameter, flag in flags:
                parameter.requires_grad_(flag)


def check_mix(weights: Mapping[str, float] | None, combination: str, density: float | None) -> None:
    """Judge the arguments before there is a model.

    Raises:
        ValueError: says what is wrong.
    """
    known = get_args(Combination)
    if combination not in known:
        raise ValueError(f"MergeAdapters: combination is {combination!r}; choose one of {', '.join(known)}")
    drops = combination.startswith(("ties", "dare"))
    if weights is not None and drops and (density is None or not 0 < density <= 1):
        raise ValueError(
            f"MergeAdapters: {combination} needs a density, above 0 and at most 1; got {density}"
        )
    if density is not None and (weights is None or not drops):
        raise ValueError("MergeAdapters: density goes with several adapters and ties or dare")
    if weights is not None and not weights:
        raise ValueError("MergeAdapters: adapters is empty; leave it out to merge the one that is trained")


def _present(model: Any, name: str, added: list[str]) -> str:
    if name in model.peft_config:
        return name
    if not (Path(name).expanduser() / "adapter_config.json").is_file():
        known = ", ".join(model.peft_config)
        raise ValueError(
            f"MergeAdapters: {name!r} is neither an adapter of the model (it has {known}) nor a directory "
            "with adapter_config.json"
        )
    label = f"{_MIXED}_{len(added)}"
    model.load_adapter(str(Path(name).expanduser()), label, is_trainable=False)
    added.append(label)
    return label
