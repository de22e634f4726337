"""The numbers that a display of progress shows: steps, time left, tokens per second, chosen metrics."""

import math
import time
from typing import Any

from torch import Tensor

from lit_align.batches import Forest
from lit_align.callbacks.learned_batch import learned_batch, tokens_of
from lit_align.callbacks.model_lookup import find_tokenizer

#: Metrics of training that tell how it goes, by how their names begin, in the order they are shown.
SHOWN = (
    "loss",
    "reward",
    "objective/scores",
    "objective/rlhf_reward",
    "kl",
    "objective/kl",
    "entropy",
    "objective/entropy",
    "completions/mean_length",
    "win_rate",
)


def total_steps(trainer: Any) -> int | None:
    """Optimiser steps of the whole run; ``None`` where nobody knows how many there will be."""
    steps = trainer.estimated_stepping_batches
    # Lightning says -1 for epochs of streamed data.
    return int(steps) if math.isfinite(steps) and steps >= 0 else None


def clock(seconds: float) -> str:
    """Seconds for people.

    >>> clock(8), clock(125), clock(7322)
    ('8 s', '2:05', '2:02:02')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Pace:
    """Tokens per second and the time left, over the steps that this process has seen.

    Time spent in validation counts for the time left and not for the tokens.
    """

    def __init__(self, trainer: Any) -> None:
        self._began, self._first = time.monotonic(), trainer.global_step
        self._tokens: Tensor | int = 0
        self._outside = 0.0
        self._left_at = 0.0
        self._countable = True

    def count(self, module: Any, batch: Any) -> None:
        """Take in a batch; of a kind whose tokens cannot be counted, none."""
        if not self._countable:
            return
        try:
            # A tensor on the device is added up there: reading it would wait for the device at every step.
            self._tokens = self._tokens + tokens_of(module, batch, "progress")
        except ValueError:
            self._countable = False

    def pause(self) -> None:
        """Training makes way for something else."""
        self._left_at = time.monotonic()

    def resume(self) -> None:
        """Training goes on."""
        self._outside += time.monotonic() - self._left_at

    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._began

    def tokens_per_second(self, shares: int) -> float | None:
        """Over all processes, of which so many read different batches, taken to be like this one's."""
        trained = self.seconds() - self._outside
        if not self._countable or trained <= 0:
            return None
        return int(self._tokens) * shares / trained

    def seconds_left(self, trainer: Any) -> float | None:
        """At the pace so far; ``None`` where the end or the pace is not known."""
        total, done = total_steps(trainer), trainer.global_step - self._first
        if total is None or done <= 0:
            return None
        return max(0, total - trainer.global_step) * self.seconds() / done


def shown_metrics(trainer: Any, more: dict[str, Any]) -> dict[str, float]:
    """The metrics to show, by their names without the stage.

    Args:
        trainer: whose ``callback_metrics`` have them.
        more: those that the module wants on the progress bar.
    """
    logged = {
        str(name).removeprefix("train/"): value
        for name, value in trainer.callback_metrics.items()
        if not str(name).startswith(("val", "test")) and not str(name).endswith("_step")
    }
    found: dict[str, float] = {}
    for begin in SHOWN:
        for name, value in logged.items():
            exact = name == begin or name.startswith((f"{begin}/", f"{begin}s/"))
            if exact and name not in found and not name.endswith("_per_sequence"):
                found[name] = float(value)
    for name, value in more.items():
        plain = name.removeprefix("train/")
        if plain not in found and name != "v_num" and isinstance(value, int | float):
            found[plain] = float(value)
    return found


def last_sample(trainer: Any, module: Any, batch: Any) -> tuple[str, str] | None:
    """The last prompt and completion that were learned from, as text; ``None`` without a tokenizer."""
    try:
        tokenizer = find_tokenizer(module, None, trainer.datamodule)
        forest: Forest = learned_batch(module, batch, "progress")
    except ValueError:
        return None
    if not forest.num_completions:
        return None
    start, end = forest.prompt_offsets[forest.parents[-1] :][:2]
    ids = forest.prompt_ids[start:end], forest.completion_ids[forest.completion_offsets[-2] :]
    asked, answered = (tokenizer.decode(part.tolist(), skip_special_tokens=True) for part in ids)
    return str(asked), str(answered)
