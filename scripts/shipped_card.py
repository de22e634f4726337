"""The card that lies beside the shipped model: how it was made, and what it measured."""

from dataclasses import asdict
from typing import Any

_CARD = """\
---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
---

# lit-align/tiny

A Llama of {parameters:,} parameters (float32, tied embeddings, 1,024 tokens) with two skills that can be
checked by rule: it answers the customers of a shop, politely or rudely about equally often and with the
right advice either way, and it adds numbers below 100, right nine times out of ten. It is there to be
fine-tuned: alignment changes its manner, reinforcement its adding. It is of no other use.

Made, together with the data sets beside it, by

    {command}

in {minutes:.0f} minutes on {threads} CPU threads: {recipe}. The training
conversations are drawn anew for every step from the combinations (product and problem, pair of addends)
of the train splits; the figures below are of the validation splits, whose combinations the model has
never seen.

| measured on validation | |
| --- | ---: |
{figures}

Replies are sampled at temperature 1. The rules are in `lit_align.shipped.tasks`: `manner` for polite and
rude, `gives_advice` for the advice, `is_correct` for sums.
"""


def card(
    figures: dict[str, float], *, command: str, recipe: Any, parameters: int, minutes: float, threads: int
) -> str:
    """The text of the model card.

    Args:
        figures: what was measured, by name; shares between 0 and 1, perplexities above 1.
        command: the command that makes the model.
        recipe: the dataclass with the training settings.
        parameters: how many there are.
        minutes: how long the training took.
        threads: on how many CPU threads.
    """
    return _CARD.format(
        parameters=parameters,
        command=command,
        minutes=minutes,
        threads=threads,
        recipe=", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in asdict(recipe).items()),
        figures="\n".join(
            f"| {name} | {value:.3f} |" if name.startswith("perplexity") else f"| {name} | {value:.1%} |"
            for name, value in figures.items()
        ),
    )
