"""The small model and the data sets that the package carries.

They are named like anything on the Hub, ``lit-align/tiny`` or ``lit-align/manners-pairs``, and are
found here before anyone asks the network. A data set's name stands for its train split; another
split follows a colon: ``lit-align/manners-pairs:validation``. `scripts/build_shipped.py` made all
of them.
"""

from difflib import get_close_matches
from pathlib import Path

PREFIX = "lit-align/"
SPLITS = ("train", "validation")

_FOLDER = Path(__file__).parent
_MODEL = "lit-align/tiny"
_NAMES = {
    _MODEL: "Llama of 0.8M parameters that answers customers politely or rudely, and adds numbers below 100",
    "lit-align/manners-sft": "customers' messages with a polite reply (messages)",
    "lit-align/manners-pairs": "one prompt, a polite and a rude reply (prompt, chosen, rejected)",
    "lit-align/manners-unpaired": "one reply and whether it is polite (prompt, completion, label)",
    "lit-align/manners-prompts": "customers' messages alone, and the advice that helps (prompt, advice)",
    "lit-align/sums-sft": "sums of one- and two-digit numbers with a right answer (messages, answer)",
    "lit-align/sums-prompts": "the questions alone, with the number that answers them (prompt, answer)",
    "lit-align/stories-prompts": "sums in wordings new to the model, with the number (prompt, answer)",
}


def names() -> dict[str, str]:
    """What the package carries: each name with one line that describes it.

    >>> names()["lit-align/manners-pairs"]
    'one prompt, a polite and a rude reply (prompt, chosen, rejected)'
    """
    return dict(_NAMES)


def find(name: str) -> Path | None:
    """The directory of the shipped model, or the file of a shipped data set.

    Args:
        name: ``lit-align/tiny``, or a data set with or without its split: ``lit-align/manners-pairs``
            is ``lit-align/manners-pairs:train``, beside ``lit-align/manners-pairs:validation``.

    Returns:
        ``None`` when the name does not begin with ``lit-align/``: it is somebody else's.

    Raises:
        ValueError: the name begins with ``lit-align/`` but the package carries nothing of that name.

    >>> find("lit-align/manners-pairs:validation").name
    'manners-pairs.validation.jsonl.gz'
    >>> find("gpt2") is None
    True
    """
    if not name.startswith(PREFIX):
        return None
    if name == _MODEL:
        return _FOLDER / "model"
    asset, colon, split = name.partition(":")
    if asset not in _NAMES:
        nearest = get_close_matches(asset, _NAMES, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"the package carries no {asset!r}; did you mean {nearest!r}? It has: {', '.join(_NAMES)}"
        )
    if asset == _MODEL:
        raise ValueError(f"{name!r}: a model has no splits; write {_MODEL!r}")
    if colon and split not in SPLITS:
        nearest = get_close_matches(split, SPLITS, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"{asset!r} has no split {split!r}; did you mean '{asset}:{nearest}'? It has: {', '.join(SPLITS)}"
        )
    return _FOLDER / "data" / f"{asset.removeprefix(PREFIX)}.{split or SPLITS[0]}.jsonl.gz"
